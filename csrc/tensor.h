// tensor.h: a tensor as a caller has it. Plain data: NumPy arrays, DLPack tensors and buffers of other runtimes are
// different ways to make one (python/views.h), and everything that is checked about a call is checked on these.
#pragma once

#include <stdint.h>

#include <memory>

#include "attention.h"

namespace gqa {

// NumPy's name of a type.
constexpr const char* name_of(DType type) {
  switch (type) {
    case DType::f32: return "float32";
    case DType::f64: return "float64";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::i8: return "int8";
    case DType::boolean: return "bool";
    case DType::i16: return "int16";
    case DType::i32: return "int32";
    case DType::i64: return "int64";
    case DType::u8: return "uint8";
    case DType::u16: return "uint16";
    case DType::u32: return "uint32";
    case DType::u64: return "uint64";
    default: return "none";
  }
}

// Of an argument that fits; one with more axes is only ever refused, and keeps the sizes of its first ones.
constexpr int max_axes = 8;

struct Shape {
  int axes;
  int64_t sizes[max_axes];
};
bool operator==(const Shape& x, const Shape& y);

// The memory belongs to somebody else, who keeps it alive as long as the view is in use.
struct TensorView {
  char* data = nullptr;  // null where only the shape and the type are known
  int axes = -1;         // -1: no tensor
  DType type = DType::none;
  bool writable = false;
  int64_t shape[max_axes];
  int64_t strides[max_axes];  // in bytes; of no meaning without data

  bool given() const { return axes >= 0; }
  bool has_elements() const;  // false where an axis has no size
  Shape whole_shape() const;
};

// The axes of a batched tensor: (batch, heads, tokens, channels) or (batch, tokens, heads, channels).
struct Layout {
  int head, token;
  const char* axes;
};
constexpr Layout bhsd{1, 2, "batch, heads, tokens, head_dim"}, bshd{2, 1, "batch, tokens, heads, head_dim"};

// (heads, tokens, channels), in either order, as a batch of one; others as they are.
TensorView batched(const TensorView& x);

// Of a tensor of four axes, or three: (batch, heads, tokens, ...).
Strides strides_of(const TensorView& x, Layout layout);

// Whether the last axis lies in memory as the kernels read it.
bool has_contiguous_channels(const TensorView& x);

// Memory for a tensor of x's shape and type in C order, which x is a view of from then on. Throws std::bad_alloc.
std::unique_ptr<char[]> allocate(TensorView& x);

// A copy in C order, and the view of it. Throws std::bad_alloc.
std::unique_ptr<char[]> copy_of(const TensorView& x, TensorView& copy);

// Whether no two elements share memory. May be false for shapes whose axes are interleaved in memory.
bool has_distinct_elements(const int64_t* shape, const int64_t* strides, int axes, int64_t element_bytes);

// Whether two tensors have a byte in common, or may have where that is too hard to tell.
bool share_memory(const TensorView& x, const TensorView& y);

}  // namespace gqa
