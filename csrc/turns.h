// turns.h: the order in which threads come to each of many slots.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace gqa {

// A slot admits turn after turn. Whoever awaits a turn must be sure that all before it will come without its own doing.
class Turns {
 public:
  explicit Turns(size_t slots = 0) : next_(slots) {}

  // The number of the first turn, otherwise 0.
  void start(size_t slot, int32_t turn) { next_[slot].store(turn, std::memory_order_relaxed); }

  // Sees everything that was written before the turn was passed on. Most waits are short; a long one, where threads are
  // more than CPUs, leaves the CPU to others.
  void await(size_t slot, int32_t turn) const {
    for (int tries = 0; next_[slot].load(std::memory_order_acquire) != turn; tries++) {
      if (tries < patience) pause();
      else std::this_thread::yield();
    }
  }
  void pass(size_t slot, int32_t turn) { next_[slot].store(turn + 1, std::memory_order_release); }

 private:
  static constexpr int patience = 256;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::vector<std::atomic<int32_t>> next_;
};

}  // namespace gqa
