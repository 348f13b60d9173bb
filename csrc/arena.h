// arena.h: scratch memory that a thread keeps between calls.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace gqa {

// Pages, so that the workspaces of different threads share none.
constexpr size_t whole_pages(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

class Arena {
 public:
  // At least so many bytes, on whole pages, until the next call. Throws std::bad_alloc.
  char* reserve(size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(::operator new(bytes, alignment)));
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t alignment{4096};
  struct Delete {
    void operator()(char* p) const { ::operator delete(p, alignment); }
  };
  std::unique_ptr<char, Delete> memory_;
  size_t size_ = 0;
};

inline thread_local Arena arena;  // of the calling thread

}  // namespace gqa
