#include "digest.h"

#include <algorithm>
#include <cstring>

namespace gqa {
namespace {

// The elements' bits, each weighed by its place. Sums of integers do not depend on the order in which they are added.
template <class T> uint64_t sum_of_row(const char* row, int64_t stride, int64_t count) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; i++) {
    T bits;
    std::memcpy(&bits, row + i * stride, sizeof bits);
    sum += uint64_t(bits) * uint64_t(2 * i + 1);
  }
  return sum;
}

template <class T> uint64_t sum_of(const char* row, int64_t stride, int64_t count) {
  return stride == int64_t(sizeof(T)) ? sum_of_row<T>(row, sizeof(T), count) : sum_of_row<T>(row, stride, count);
}

uint64_t sum_of(const char* row, int64_t stride, int64_t count, int64_t bytes) {
  switch (bytes) {
    case 1: return sum_of<uint8_t>(row, stride, count);
    case 2: return sum_of<uint16_t>(row, stride, count);
    case 4: return sum_of<uint32_t>(row, stride, count);
    default: return sum_of<uint64_t>(row, stride, count);
  }
}

}  // namespace

void Digest::add(double number) {
  int64_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  add(bits);
}

void Digest::add(std::string_view text) {
  add(int64_t(text.size()));
  for (const char c : text) add(int64_t(c));
}

void Digest::add(const std::vector<int64_t>& numbers) {
  add(int64_t(numbers.size()));
  for (const int64_t n : numbers) add(n);
}

void Digest::add(const TensorView& x, bool whole) {
  add(int64_t(x.axes));
  if (!x.given()) return;
  add(int64_t(x.type));
  for (int axis = 0; axis < std::min(x.axes, max_axes); axis++) add(x.shape[axis]);
  if (!whole || x.axes > max_axes || !x.has_elements()) return;
  const int last = x.axes - 1;
  const int64_t count = last < 0 ? 1 : x.shape[last], stride = last < 0 ? 0 : x.strides[last];
  int64_t index[max_axes] = {};
  for (;;) {
    const char* row = x.data;
    for (int axis = 0; axis < last; axis++) row += index[axis] * x.strides[axis];
    add(int64_t(sum_of(row, stride, count, bytes_of(x.type))));
    int axis = last - 1;
    for (; axis >= 0 && ++index[axis] == x.shape[axis]; axis--) index[axis] = 0;
    if (axis < 0) return;
  }
}

void Digest::add(const Tensor& x, bool whole) {
  add(x.data, whole);
  add(x.scale, whole);
}

void Digest::add(const Options& options) {
  for (const int64_t number : {int64_t(options.causal), options.left, options.right, int64_t(options.default_scale),
                               int64_t(options.return_lse), int64_t(options.out_type)})
    add(number);
  add(options.scale);
  add(options.softcap);
  add(int64_t(options.program != nullptr));
  for (const TensorView& x : options.captured) add(x, true);
  add(options.mask, true);
  add(options.sinks, true);
}

}  // namespace gqa
