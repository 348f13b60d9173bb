// tensors.h: tensors made from a fuzzer's bytes, each in an allocation of its own that ends where its last byte does,
// so that a sanitizer sees every read and write past either end.
#pragma once

#include <cstdlib>
#include <deque>
#include <initializer_list>
#include <vector>

#include "call.h"
#include "input.h"

namespace gqa {

// Ends the process with the place of what must not be.
#define GQA_REQUIRE(condition) ((condition) ? void() : ::gqa::fail(#condition, __FILE__, __LINE__))
[[noreturn]] void fail(const char* condition, const char* file, int line);

enum class Content { ordinary, special, bytes };  // numbers within +-2; some infinite, huge or NaN too; anything

class Tensors {
 public:
  explicit Tensors(Input& input) : input_(input), content_(Content(input.below(3))) {}

  // A tensor of that shape, or now and then of another one. Its memory is there unless it would take too much.
  TensorView make(DType type, std::initializer_list<int64_t> sizes);
  TensorView make(DType type, const Shape& shape) { return make(type, shape, Freedom::any); }

  // One of exactly that shape, whose elements are apart; `packed`: with a contiguous last axis.
  TensorView exactly(DType type, const Shape& shape) { return make(type, shape, Freedom::strides); }
  TensorView packed(DType type, const Shape& shape) { return make(type, shape, Freedom::rows); }

  TensorView in_order(DType type, const Shape& shape) { return make(type, shape, Freedom::none); }  // in C order

  // One to write to, of exactly that shape, whose bytes are all `filler`.
  TensorView result(DType type, const Shape& shape, uint8_t filler);

  // Whether the memory of every tensor is there.
  bool complete() const { return complete_; }
  Content content() const { return content_; }

  static void fill(const TensorView& x, uint8_t filler);  // its elements, not what lies between them
  std::vector<uint8_t> bytes_of_block(const TensorView& x) const;
  std::vector<bool> bytes_of_elements(const TensorView& x) const;  // of its block: which belong to an element

  // Of all memory but that of one tensor: what a call must leave as it is.
  uint64_t checksum(const TensorView& except) const;
  void forget(const TensorView& x);  // from then on no longer part of it

 private:
  struct Block {
    char *begin, *data;  // of all memory; of element 0
    size_t size;
    ~Block() { std::free(begin); }
  };

  enum class Freedom { any, strides, rows, none };  // what may be other than in a new array
  TensorView make(DType type, const Shape& shape, Freedom freedom);
  void allocate(TensorView& x, bool anywhere);
  void fill_with_numbers(const TensorView& x, size_t size, char* begin);
  const Block& block_of(const TensorView& x) const;

  Input& input_;
  const Content content_;
  bool complete_ = true;
  std::deque<Block> blocks_;
};

// The index of each element of x in turn: calls visit(address).
template <class Visit> void for_each_element(const TensorView& x, Visit visit) {
  int64_t index[max_axes] = {};
  if (!x.has_elements()) return;
  for (;;) {
    char* p = x.data;
    for (int axis = 0; axis < x.axes; axis++) p += index[axis] * x.strides[axis];
    visit(p);
    int axis = x.axes - 1;
    while (axis >= 0 && ++index[axis] == x.shape[axis]) index[axis--] = 0;
    if (axis < 0) return;
  }
}

// A float type; in one case of three float32, which takes every path.
DType float_type(Input& input);

}  // namespace gqa
