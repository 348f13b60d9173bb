// scratch.h: the scratch memory of a task, handed out piece by piece in the order in which it is asked for.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace gqa {
namespace GQA_ISA {
namespace {

// With no memory it only counts, so that one function both measures and lays out.
class Scratch {
 public:
  explicit Scratch(void* memory) : next_(reinterpret_cast<uintptr_t>(memory)), begin_(next_) {}

  template <class T> T* take(int64_t n) {
    T* p = reinterpret_cast<T*>(next_);
    next_ += (size_t(n) * sizeof(T) + 63) / 64 * 64;
    return p;
  }
  size_t used() const { return next_ - begin_; }

 private:
  uintptr_t next_;
  const uintptr_t begin_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
