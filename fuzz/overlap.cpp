// overlap.cpp: whether tensors share memory, and whether their elements do, against a list of every byte.
#include <algorithm>

#include "tensors.h"

using namespace gqa;

namespace {

constexpr int64_t max_elements = 4096;

// Strides anywhere near the sizes of other axes, so that elements of both tensors come to lie between each other.
TensorView read_view(Input& input, char* memory) {
  constexpr DType types[] = {DType::f32, DType::f64, DType::f16, DType::i8};
  TensorView x;
  x.type = types[input.below(4)];
  x.axes = int(input.below(5));
  x.data = memory + input.below(200);
  int64_t elements = 1;
  for (int axis = 0; axis < x.axes; axis++) {
    x.shape[axis] = input.below(7);
    x.strides[axis] = (input.below(128) - 64) * (input.flag() ? 1 : 8);
    elements *= x.shape[axis];
  }
  while (elements > max_elements) elements /= x.shape[--x.axes];
  return x;
}

std::vector<const char*> bytes_of_tensor(const TensorView& x) {
  std::vector<const char*> bytes;
  for_each_element(x, [&](const char* p) {
    for (int64_t i = 0; i < bytes_of(x.type); i++) bytes.push_back(p + i);
  });
  std::sort(bytes.begin(), bytes.end());
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static char memory[1 << 16];  // nothing is read: these are addresses
  Input input(data, size);
  const TensorView x = read_view(input, memory + sizeof memory / 2), y = read_view(input, memory + sizeof memory / 2);
  const std::vector<const char*> of_x = bytes_of_tensor(x), of_y = bytes_of_tensor(y);
  std::vector<const char*> both;
  std::set_intersection(of_x.begin(), of_x.end(), of_y.begin(), of_y.end(), std::back_inserter(both));
  GQA_REQUIRE(share_memory(x, y) == !both.empty());
  GQA_REQUIRE(share_memory(y, x) == !both.empty());
  // That elements are distinct may be denied where axes interleave, but never be claimed where they are not.
  const bool distinct = std::adjacent_find(of_x.begin(), of_x.end()) == of_x.end();
  GQA_REQUIRE(distinct || !has_distinct_elements(x.shape, x.strides, x.axes, bytes_of(x.type)));

  // Numbers that lie nowhere: no sum of them may overflow.
  TensorView far = x;
  for (int axis = 0; axis < far.axes; axis++) {
    if (input.flag()) far.shape[axis] = std::max<int64_t>(0, input.word());
    if (input.flag()) far.strides[axis] = input.word();
  }
  share_memory(far, y);
  has_distinct_elements(far.shape, far.strides, far.axes, bytes_of(far.type));
  if (far.axes > 0) has_contiguous_channels(far);
  return 0;
}
