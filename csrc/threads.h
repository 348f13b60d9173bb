// threads.h: how many threads a call may use.
#pragma once

namespace gqa {

// What `set_threads` chose, or else what the process may use: OpenMP's own limit (OMP_NUM_THREADS, affinity,
// threadpoolctl) and the CPU quota of the cgroup.
int default_threads();
constexpr int most_threads = 1024;
void set_threads(int n);  // 0: back to the default

constexpr double worth_a_thread = 30;  // microseconds of work
// How many threads, at least 1 and at most `threads`, are worth starting for work that takes one thread so long.
int threads_worth(double microseconds, int threads);

bool has_openmp();

// True in a child of fork(): the OpenMP threads of the parent are gone, and entering a parallel region could hang.
bool forked();

}  // namespace gqa
