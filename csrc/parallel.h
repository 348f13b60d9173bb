// parallel.h: tasks on several threads, those of one pool that all calls of the process share.
//
// Not OpenMP's own threads, because a call must not wait for a thread that has nothing of it. Other libraries' idle
// threads (OpenBLAS's under NumPy, another OpenMP runtime's) go on spinning for a while and keep CPUs busy: a thread
// that OpenMP wakes then comes late to a region of which the others have long done everything, and all wait for it at
// its end. Here the caller waits only for threads that have taken a task. Nor do idle threads spin for long, which
// would do the same to others; nor does every thread that calls have a team of its own; nor does the process end where
// no thread can be started.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace gqa {

// task: from 0 on, each done once, begun in their order. thread: 0 for the caller, less than `threads`, and no other's
// while the task runs.
using TaskFunction = void (*)(void* context, int64_t task, int thread);

// Returns when all tasks are done. A task must not throw, but may wait for tasks of smaller numbers.
void run_tasks(int64_t tasks, int threads, void* context, TaskFunction function);

// While one exists, the calls that its thread makes can be given up: `asked` is called in that thread, between tasks
// and within long ones, once in `asked_every`; after it has returned true, no more tasks are begun and long ones end
// early.
class Interruption {
 public:
  static constexpr int64_t asked_every = 50'000'000;  // nanoseconds

  explicit Interruption(bool (*asked)());
  ~Interruption();
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;

  bool happened() const { return happened_.load(std::memory_order_relaxed); }

 private:
  friend bool interrupted();

  bool (*const asked_)();
  Interruption* const outer_;
  const std::thread::id owner_;
  int64_t asked_at_ = 0;
  std::atomic<bool> happened_{false};
};

// Whether what the thread computes will not be read.
bool interrupted();

template <class F> void parallel_for(int64_t tasks, int threads, F&& f) {
  run_tasks(tasks, threads, &f,
            [](void* context, int64_t task, int thread) { (*static_cast<F*>(context))(task, thread); });
}

}  // namespace gqa
