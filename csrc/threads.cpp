#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cgroup.h"

namespace gqa {
namespace {

std::atomic<int> chosen{0};
std::atomic<bool> is_child{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { is_child = true; });

// CPUs that the process may run on now.
int cpus_allowed() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return int(std::max(1u, std::thread::hardware_concurrency()));
}

#if defined(_OPENMP)
// OpenMP's limit is the number that the environment names, or else the CPUs there were when it was loaded: it does not
// follow when they become fewer, or more.
const int cpus_at_load = cpus_allowed();
const bool limit_is_named = std::getenv("OMP_NUM_THREADS") != nullptr;

int limited_threads(int cpus) {
  static const int quota = cpu_quota();
  int n = omp_get_max_threads();
  if (n > max_threads) n = cpus;  // no number that anybody could mean
  if (!limit_is_named && n == cpus_at_load) n = cpus;
  if (!limit_is_named || cpus < cpus_at_load) n = std::min(n, cpus);
  return std::max(1, std::min({n, quota, max_threads}));
}
#else
int limited_threads(int) { return 1; }
#endif

std::atomic<int64_t> cpus_seen_at{-1};
std::atomic<int> cpus_seen{0};

}  // namespace

#if defined(__linux__)
int64_t tick() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}
#else
int64_t tick() { return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count(); }
#endif

int default_threads_now() {
  if (const int n = chosen.load(std::memory_order_relaxed)) return n;
  const int cpus = cpus_allowed();
  cpus_seen.store(cpus, std::memory_order_relaxed);
  cpus_seen_at.store(tick(), std::memory_order_release);
  return limited_threads(cpus);
}

int default_threads() {
  if (const int n = chosen.load(std::memory_order_relaxed)) return n;
  if (cpus_seen_at.load(std::memory_order_acquire) != tick()) return default_threads_now();
  return limited_threads(cpus_seen.load(std::memory_order_relaxed));
}

void set_threads(int n) { chosen = n; }

int threads_worth(double microseconds, int threads) {
  return forked() ? 1 : int(std::min<double>(threads, std::max(1.0, microseconds / worth_a_thread)));
}

bool has_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

bool forked() { return is_child.load(std::memory_order_relaxed); }

}  // namespace gqa
