#include "tensors.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace gqa {
namespace {

constexpr int64_t max_block = 1 << 20;  // bytes

uint32_t next_random(uint32_t& state) {  // a linear congruence: fast, and the same everywhere
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

float special_number(uint32_t random) {
  constexpr float infinity = std::numeric_limits<float>::infinity(), huge = std::numeric_limits<float>::max();
  constexpr float numbers[] = {0, -0.0f, 1, -1, infinity, -infinity, NAN, huge, -huge, 1e-42f, 88, -104};
  return numbers[random % std::size(numbers)];
}

void write(char* p, DType type, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const double wide = x;
  // Of half precision some number near x, whichever way it is rounded.
  const uint32_t exponent = bits >> 23 & 0xff;
  const uint16_t brain = uint16_t(bits >> 16),
                 half = uint16_t((bits >> 16 & 0x8000) |
                                 (exponent > 142   ? 0x7c00 | (std::isnan(x) ? 0x200 : 0)
                                  : exponent < 113 ? 0
                                                   : (exponent - 112) << 10 | (bits >> 13 & 0x3ff)));
  switch (type) {
    case DType::f64: return void(std::memcpy(p, &wide, 8));
    case DType::f32: return void(std::memcpy(p, &x, 4));
    case DType::bf16: return void(std::memcpy(p, &brain, 2));
    case DType::f16: return void(std::memcpy(p, &half, 2));
    default: break;
  }
  const int64_t whole = int64_t(std::isfinite(x) ? std::clamp(x, -2.0f, 2.0f) * (type == DType::i8 ? 60 : 16) : 0);
  std::memcpy(p, &whole, size_t(bytes_of(type)));
}

}  // namespace

void fail(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: not so: %s\n", file, line, condition);
  std::abort();
}

DType float_type(Input& input) {
  constexpr DType types[] = {DType::f32, DType::f16, DType::f64, DType::bf16, DType::f32, DType::f32};
  return types[input.below(6)];
}

TensorView Tensors::make(DType type, std::initializer_list<int64_t> sizes) {
  Shape shape{int(sizes.size()), {}};
  std::copy(sizes.begin(), sizes.end(), shape.sizes);
  return make(type, shape, Freedom::any);
}

TensorView Tensors::result(DType type, const Shape& shape, uint8_t filler) {
  const TensorView x = exactly(type, shape);
  if (complete_) fill(x, filler);
  return x;
}

TensorView Tensors::make(DType type, const Shape& shape, Freedom freedom) {
  const bool may_differ = freedom == Freedom::any;
  TensorView x;
  x.axes = shape.axes;
  x.type = type;
  x.writable = true;
  std::copy_n(shape.sizes, shape.axes, x.shape);
  const int64_t change = input_.byte();
  if (may_differ && change >= 0xf0) {
    if (change < 0xf8 && x.axes > 0) x.shape[input_.below(x.axes)] = input_.size();
    else x.axes = int(input_.below(max_axes + 1));
    for (int axis = shape.axes; axis < x.axes; axis++) x.shape[axis] = input_.size();
  }
  // Strides as if the axes lay in memory in some order, with gaps or without, forwards or backwards, or none at all.
  int order[max_axes];
  for (int i = 0; i < x.axes; i++) order[i] = x.axes - 1 - i;
  const int64_t manner = input_.byte();
  // Of `order`: axes that stay as they are.
  const int fixed = freedom == Freedom::none ? x.axes : freedom == Freedom::rows ? 1 : 0;
  if (manner & 1 && x.axes > fixed)
    std::swap(order[fixed + input_.below(x.axes - fixed)], order[fixed + input_.below(x.axes - fixed)]);
  int64_t reach = bytes_of(type);
  for (int i = 0; i < x.axes; i++) {
    const int axis = order[i];
    x.strides[axis] = reach;
    if (i < fixed) {
      if (__builtin_mul_overflow(reach, std::max<int64_t>(x.shape[axis], 1), &reach)) reach = INT64_MAX;
      continue;
    }
    if (manner & 2 && input_.flag()) x.strides[axis] += input_.below(16);
    if (may_differ && manner & 4 && input_.flag()) x.strides[axis] = 0;
    if (may_differ && manner & 8 && input_.rarely()) x.strides[axis] = input_.word();
    int64_t step;
    if (x.strides[axis] != 0 && !__builtin_mul_overflow(x.strides[axis], std::max<int64_t>(x.shape[axis], 1), &step) &&
        step > 0 && step <= max_block)
      reach = std::max(reach, step);
    if (manner & 16 && input_.flag() && x.strides[axis] != INT64_MIN) x.strides[axis] = -x.strides[axis];
  }
  allocate(x, freedom != Freedom::none);
  return x;
}

void Tensors::allocate(TensorView& x, bool anywhere) {
  int64_t low = 0, high = bytes_of(x.type);
  bool fits = true;
  for (int axis = 0; axis < x.axes && fits; axis++) {
    int64_t extent;
    fits = !__builtin_mul_overflow(x.strides[axis], std::max<int64_t>(x.shape[axis], 1) - 1, &extent) &&
           extent <= max_block && extent >= -max_block;
    if (fits) (extent < 0 ? low : high) += extent;
  }
  if (!x.has_elements()) low = high = 0, fits = true;
  static char nowhere;  // for strides that only checks may look at
  if (!fits || high - low > max_block) {
    complete_ = false;
    x.data = input_.flag() ? &nowhere : nullptr;
    return;
  }
  const int64_t odd = anywhere && input_.rarely() ? input_.below(8) : 0;  // an address that fits no element
  Block& block = blocks_.emplace_back();
  block.size = size_t(high - low + odd);
  block.begin = static_cast<char*>(std::malloc(block.size));
  block.data = x.data = block.begin + odd - low;
  fill_with_numbers(x, block.size, block.begin);
}

void Tensors::fill_with_numbers(const TensorView& x, size_t size, char* begin) {
  uint32_t state = input_.byte();
  for (size_t i = 0; i < size; i++) begin[i] = char(next_random(state));
  if (x.type == DType::boolean || content_ == Content::bytes || !x.has_elements()) return;
  // Where elements share memory the last one written stays; where there are too many, the bytes stay as they are if
  // anything may be there.
  int64_t elements = 1;
  for (int axis = 0; axis < x.axes; axis++)
    if (x.strides[axis] != 0 && __builtin_mul_overflow(elements, x.shape[axis], &elements)) elements = INT64_MAX;
  if (elements > max_block) return void(complete_ = false);
  TensorView written = x;
  for (int axis = 0; axis < x.axes; axis++)
    if (x.strides[axis] == 0) written.shape[axis] = 1;
  for_each_element(written, [&](char* p) {
    const uint32_t random = next_random(state);
    const bool is_special = content_ == Content::special && random % 16 == 0;
    write(p, x.type, is_special ? special_number(random / 16) : float(random % 4096) / 1024 - 2);
  });
}

const Tensors::Block& Tensors::block_of(const TensorView& x) const {
  for (const Block& block : blocks_)
    if (block.data == x.data) return block;
  fail("the tensor is one of these", __FILE__, __LINE__);
}

void Tensors::fill(const TensorView& x, uint8_t filler) {
  for_each_element(x, [&](char* p) { std::memset(p, filler, size_t(gqa::bytes_of(x.type))); });
}

std::vector<uint8_t> Tensors::bytes_of_block(const TensorView& x) const {
  const Block& block = block_of(x);
  return std::vector<uint8_t>(block.begin, block.begin + block.size);
}

std::vector<bool> Tensors::bytes_of_elements(const TensorView& x) const {
  const Block& block = block_of(x);
  std::vector<bool> belongs(block.size);
  for_each_element(x, [&](char* p) {
    for (int64_t i = 0; i < gqa::bytes_of(x.type); i++) belongs[size_t(p - block.begin + i)] = true;
  });
  return belongs;
}

void Tensors::forget(const TensorView& x) {
  for (Block& block : blocks_)
    if (block.data == x.data) block.data = nullptr;
}

uint64_t Tensors::checksum(const TensorView& except) const {
  uint64_t sum = 0;
  for (const Block& block : blocks_) {
    if (block.data == except.data) continue;
    for (size_t i = 0; i < block.size; i++) sum = sum * 31 + uint8_t(block.begin[i]);
  }
  return sum;
}

}  // namespace gqa
