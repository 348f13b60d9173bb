#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <string>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace gqa {
namespace {

std::atomic<int> chosen{0};
std::atomic<bool> is_child{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { is_child = true; });

// CPUs that the cgroup's quota amounts to, rounded up; a large number where there is none.
int quota() {
  constexpr int unlimited = 1 << 20;
  double allowed = -1, period = -1;
  std::string text;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> text >> period) {
    if (text != "max") allowed = std::atof(text.c_str());
  } else {
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") >> allowed;
    std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
  }
  return allowed > 0 && period > 0 ? std::max(1, int(std::ceil(allowed / period))) : unlimited;
}

}  // namespace

int default_threads() {
  if (const int n = chosen.load(std::memory_order_relaxed)) return n;
#if defined(_OPENMP)
  static const int limit = quota();
  return std::max(1, std::min(limit, omp_get_max_threads()));
#else
  return 1;
#endif
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
