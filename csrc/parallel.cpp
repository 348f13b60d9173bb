#include "parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "threads.h"

namespace gqa {
namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waking a thread takes tens of microseconds, more than many a call is shared for, and may put it on the CPU of the
// thread that wakes it: between calls that follow each other threads stay awake. They soon leave their CPU to whoever
// else wants it, and go to sleep where there is nothing for longer than a few turns of the scheduler.
constexpr auto alone = std::chrono::microseconds(20), awake = std::chrono::microseconds(4000);

// Whether `done` becomes true while a thread is awake for it.
template <class F> bool spin(const F& done) {
  const auto begin = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < 32; i++) {
      if (done()) return true;
      relax();
    }
    const auto waited = std::chrono::steady_clock::now() - begin;
    if (waited > awake) return false;
    if (waited > alone) std::this_thread::yield();
  }
}

#if defined(__linux__)
int cpu_now() { return sched_getcpu(); }

// Moves this thread to another CPU that it may run on, if there is one. Linux wakes a thread on the CPU of the thread
// that wakes it more often than not, where that one would wait for it, and moves it only after some tenths of a second.
void leave_cpu(int cpu) {
  cpu_set_t allowed, others;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  others = allowed;
  CPU_CLR(size_t(cpu), &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
  sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int cpu_now() { return -1; }
void leave_cpu(int) {}
#endif

thread_local Interruption* current = nullptr;  // of the call that this thread has a task of

struct Job {
  const int64_t tasks;
  void* const context;
  const TaskFunction function;
  int room;                      // for so many more threads
  int threads = 1;               // that have taken part; the caller is the first
  std::atomic<int64_t> next{0};  // task
  Interruption* const interruption = current;
  const int cpu = cpu_now();   // of the caller
  std::atomic<int> active{0};  // threads besides the caller

  void work(int thread) {
    for (int64_t task; !interrupted() && (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      function(context, task, thread);
  }
};

class Pool {
 public:
  void run(Job& job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      start_threads(job.room);
      if (job.room > 0) post(job);
    }
    if (asleep_.load(std::memory_order_relaxed) > 0) wake_.notify_one();  // who wakes others
    job.work(0);
    withdraw(job);
  }

 private:
  // As many as there are jobs for; fewer where the system gives no more.
  void start_threads(int wanted) {
    sigset_t all, before;
    if (threads_ >= wanted) return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads of the program
    try {
      for (; threads_ < wanted; threads_++) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void post(Job& job) {
    jobs_.push_back(&job);
    posted_.fetch_add(1, std::memory_order_release);
  }

  // Nobody joins any more, and who has joined has done.
  void withdraw(Job& job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      forget(job);
    }
    const auto done = [&] { return job.active.load(std::memory_order_acquire) == 0; };
    if (spin(done)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, done);
  }

  void forget(const Job& job) { jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end()); }

  // The life of a thread.
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (jobs_.empty()) rest(lock);
      else take_part(lock, *jobs_.front());
    }
  }

  void take_part(std::unique_lock<std::mutex>& lock, Job& job) {
    const int thread = job.threads++;
    job.active.fetch_add(1, std::memory_order_relaxed);
    if (--job.room == 0) forget(job);
    const bool others = !jobs_.empty();
    lock.unlock();
    if (others && asleep_.load(std::memory_order_relaxed) > 0) {
      wake_.notify_one();
      wake_.notify_one();
    }
    if (job.cpu >= 0 && cpu_now() == job.cpu) leave_cpu(job.cpu);
    current = job.interruption;
    job.work(thread);
    current = nullptr;
    lock.lock();
    forget(job);  // there is nothing left of it
    if (job.active.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
  }

  void rest(std::unique_lock<std::mutex>& lock) {
    const uint64_t seen = posted_.load(std::memory_order_acquire);
    lock.unlock();
    const bool posted = spin([&] { return posted_.load(std::memory_order_acquire) != seen; });
    lock.lock();
    if (posted || !jobs_.empty()) return;
    asleep_.fetch_add(1, std::memory_order_relaxed);
    wake_.wait(lock);
    asleep_.fetch_sub(1, std::memory_order_relaxed);
  }

  std::mutex mutex_;        // of what follows, and of the jobs' room and threads
  std::vector<Job*> jobs_;  // with room, the oldest first
  int threads_ = 0;
  std::atomic<int> asleep_{0};
  std::atomic<uint64_t> posted_{0};  // jobs so far
  std::condition_variable wake_, done_;
};

// Never destroyed: its threads outlive what the process destroys at its end.
Pool& pool() {
  static Pool* const pool = new Pool;
  return *pool;
}

}  // namespace

Interruption::Interruption(bool (*asked)()) : asked_(asked), outer_(current), owner_(std::this_thread::get_id()) {
  current = this;
}

Interruption::~Interruption() { current = outer_; }

bool interrupted() {
  Interruption* const interruption = current;
  if (!interruption) return false;
  if (interruption->happened()) return true;
  if (interruption->owner_ != std::this_thread::get_id()) return false;
  const int64_t now = tick();
  if (interruption->asked_at_ == 0) interruption->asked_at_ = now;
  if (now - interruption->asked_at_ < Interruption::asked_every) return false;
  const bool yes = interruption->asked_();
  interruption->asked_at_ = tick();
  interruption->happened_.store(yes, std::memory_order_relaxed);
  return yes;
}

void run_tasks(int64_t tasks, int threads, void* context, TaskFunction function) {
  if (threads <= 1 || tasks <= 1 || forked()) {
    for (int64_t task = 0; task < tasks && !interrupted(); task++) function(context, task, 0);
    return;
  }
  Job job{tasks, context, function, int(std::min<int64_t>(threads, tasks)) - 1};
  pool().run(job);
}

}  // namespace gqa
