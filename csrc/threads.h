// threads.h: how many threads a call may use.
#pragma once

#include <cstdint>

namespace gqa {

// What `set_threads` chose, or else what the process may use: the least of OpenMP's own limit (OMP_NUM_THREADS,
// threadpoolctl), the CPUs that it may run on now, and the quota of its control groups, which is read once.
int default_threads_now();
// The same for each call: the system is asked for the CPUs only once in every tick of its clock (a few milliseconds),
// for the question takes 5 % of the time of a short call.
int default_threads();
constexpr int max_threads = 1024;
void set_threads(int n);  // 0: back to the default

constexpr double worth_a_thread = 30;  // microseconds of work
// How many threads, at least 1 and at most `threads`, are worth starting for work that takes one thread so long.
int threads_worth(double microseconds, int threads);

bool has_openmp();

// Nanoseconds, in steps of a few milliseconds, for what is asked too often to ask a precise clock.
int64_t tick();

// True in a child of fork(): the OpenMP threads of the parent are gone, and entering a parallel region could hang.
bool forked();

}  // namespace gqa
