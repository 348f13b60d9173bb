#include "tensor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

namespace gqa {

bool operator==(const Shape& x, const Shape& y) {
  return x.axes == y.axes && std::equal(x.sizes, x.sizes + x.axes, y.sizes);
}

bool TensorView::has_elements() const {
  return std::find(shape, shape + std::min(axes, max_axes), 0) == shape + std::min(axes, max_axes);
}

Shape TensorView::whole_shape() const {
  Shape whole{axes, {}};
  std::copy_n(shape, std::min(axes, max_axes), whole.sizes);
  return whole;
}

TensorView batched(const TensorView& x) {
  if (x.axes != 3) return x;
  TensorView y = x;
  y.axes = 4;
  y.shape[0] = 1, y.strides[0] = 0;
  std::copy_n(x.shape, 3, y.shape + 1);
  std::copy_n(x.strides, 3, y.strides + 1);
  return y;
}

Strides strides_of(const TensorView& x, Layout layout) {
  if (!x.has_elements()) return {0, 0, 0};  // they may lead anywhere: not even an address is made of them
  return {x.strides[0], x.strides[layout.head], x.strides[layout.token]};
}

bool has_contiguous_channels(const TensorView& x) {
  const int last = x.axes - 1;
  return x.shape[last] <= 1 || x.strides[last] == bytes_of(x.type) || !x.has_elements();
}

std::unique_ptr<char[]> allocate(TensorView& x) {
  int64_t size = bytes_of(x.type);
  for (int axis = x.axes - 1; axis >= 0; axis--) {
    x.strides[axis] = size;
    if (__builtin_mul_overflow(size, x.shape[axis], &size)) throw std::bad_alloc();
  }
  std::unique_ptr<char[]> memory(new char[size_t(size)]);
  x.data = memory.get();
  return memory;
}

std::unique_ptr<char[]> copy_of(const TensorView& x, TensorView& copy) {
  copy = x;
  std::unique_ptr<char[]> memory = allocate(copy);
  if (!x.has_elements()) return memory;

  const int64_t bytes = bytes_of(x.type);
  int64_t size = bytes;
  for (int axis = 0; axis < x.axes; axis++) size *= x.shape[axis];
  const int last = x.axes - 1;
  int64_t index[max_axes] = {};
  const char* from = x.data;
  for (char* to = copy.data; to < copy.data + size;) {
    for (int64_t channel = 0; channel < x.shape[last]; channel++, to += bytes)
      std::memcpy(to, from + channel * x.strides[last], size_t(bytes));
    for (int axis = last - 1; axis >= 0; axis--) {  // the next row, as an odometer counts
      if (++index[axis] < x.shape[axis]) {
        from += x.strides[axis];
        break;
      }
      from -= (x.shape[axis] - 1) * x.strides[axis];  // never past an end: the stride of one element may be anything
      index[axis] = 0;
    }
  }
  return memory;
}

bool has_distinct_elements(const int64_t* shape, const int64_t* strides, int axes, int64_t element_bytes) {
  std::vector<std::pair<uint64_t, int64_t>> by_stride;  // (|stride|, size)
  for (int axis = 0; axis < axes; axis++) {
    if (shape[axis] == 0) return true;
    const uint64_t stride = uint64_t(strides[axis]);
    if (shape[axis] > 1) by_stride.emplace_back(strides[axis] < 0 ? 0 - stride : stride, shape[axis]);
  }
  std::sort(by_stride.begin(), by_stride.end());
  uint64_t reach = uint64_t(element_bytes);
  for (const auto& [stride, size] : by_stride) {
    uint64_t extent;
    if (stride < reach || __builtin_mul_overflow(stride, uint64_t(size - 1), &extent) ||
        __builtin_add_overflow(reach, extent, &reach))
      return false;
  }
  return true;
}

}  // namespace gqa
