// limits.cpp: what this machine can do at most, for limits.py.
//
// multiply_add_rate: float32 multiply-adds on registers alone. read_rate: reading memory and nothing else. Compiled for
// the instruction set in question. Every thread is pinned to a CPU of its own among those of the process.

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, accumulators = 24;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, accumulators = 12;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, accumulators = 24;
#else
// SSE: a product, then a sum; an odd number keeps both pairs of ports busy.
constexpr int vector_bytes = 16, accumulators = 13;
#endif

typedef float Vec __attribute__((vector_size(vector_bytes)));
constexpr int width = vector_bytes / int(sizeof(float));

volatile float sink;  // results end here, so that no loop can be left out

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void pin(int thread) {
#if defined(__linux__)
  cpu_set_t all, one;
  CPU_ZERO(&one);
  sched_getaffinity(0, sizeof all, &all);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &all) && thread-- == 0) CPU_SET(cpu, &one);
  if (CPU_COUNT(&one) == 1) pthread_setaffinity_np(pthread_self(), sizeof one, &one);
#endif
}

// Seconds from the first start to the last end of work(thread) on each of the threads.
template <class Work> double seconds(int threads, Work work) {
  std::atomic<int> waiting{threads};
  std::vector<double> start(threads), end(threads);
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; i++)
    pool.emplace_back([&, i] {
      pin(i);
      for (waiting--; waiting > 0;) std::this_thread::yield();
      start[i] = now();
      work(i);
      end[i] = now();
    });
  for (std::thread& thread : pool) thread.join();
  return *std::max_element(end.begin(), end.end()) - *std::min_element(start.begin(), start.end());
}

void multiply_add(long steps) {
  Vec sum[accumulators], factor = Vec{} + 0.999f, term = Vec{} + 1e-3f;
#pragma GCC unroll 24
  for (int a = 0; a < accumulators; a++) sum[a] = Vec{} + float(a);
  for (long i = 0; i < steps; i++) {
#pragma GCC unroll 24
    for (int a = 0; a < accumulators; a++) sum[a] = sum[a] * factor + term;
  }
#pragma GCC unroll 24
  for (int a = 0; a < accumulators; a++) sink = sum[a][0];
}

// Adds up `bytes` of memory, cut into `streams` parts that are read side by side.
template <int streams> void read(const char* data, size_t bytes) {
  constexpr int vectors = 8 / streams;  // of each stream in one step: eight sums hide the latency of an addition
  constexpr size_t step = vectors * vector_bytes;
  const size_t part = bytes / streams / step * step;
  Vec sum[streams][vectors] = {};
  for (size_t offset = 0; offset < part; offset += step) {
#pragma GCC unroll 8
    for (int s = 0; s < streams; s++) {
#pragma GCC unroll 8
      for (int j = 0; j < vectors; j++)
        sum[s][j] += *reinterpret_cast<const Vec*>(data + s * part + offset + j * vector_bytes);
    }
  }
  for (auto& stream : sum)
    for (Vec& v : stream) sink = v[0];
}

}  // namespace

// Operations per second, two for each multiply-add, when every thread does about `operations` of them.
extern "C" double multiply_add_rate(int threads, double operations) {
  const long steps = long(operations / (2 * width * accumulators));
  const double time = seconds(threads, [=](int) { multiply_add(steps); });
  return 2.0 * width * accumulators * double(steps) * threads / time;
}

// Bytes per second over `bytes` at `data` (aligned to 64), divided among the threads, read `repeats` times in 1, 2, 4
// or 8 streams per thread.
extern "C" double read_rate(int threads, const char* data, size_t bytes, int repeats, int streams) {
  const size_t share = bytes / threads / 1024 * 1024;
  const double time = seconds(threads, [=](int i) {
    const char* part = data + i * share;
    for (int r = 0; r < repeats; r++) {
      if (streams == 1) read<1>(part, share);
      if (streams == 2) read<2>(part, share);
      if (streams == 4) read<4>(part, share);
      if (streams == 8) read<8>(part, share);
    }
  });
  return double(share) * threads * repeats / time;
}
