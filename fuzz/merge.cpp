// merge.cpp: partial results merged: any parts, shapes, strides and types.
#include <algorithm>

#include "coverage.h"
#include "states.h"
#include "tensors.h"

using namespace gqa;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  Tensors tensors(input);
  Shape rows{int(input.below(5)), {}};
  double work = 1;
  for (int axis = 0; axis < rows.axes; axis++) work *= double(rows.sizes[axis] = input.size());
  const int64_t channels = input.size(), part_count = 1 + input.below(6);
  if (!(work * double(std::max<int64_t>(channels, 1)) < 1e5)) return 0;
  Shape shape = rows;
  shape.sizes[shape.axes++] = channels;

  const auto lse_type = [&] { return input.flag() ? DType::f64 : DType::f32; };
  std::vector<TensorView> views;
  std::vector<State> parts;
  views.reserve(size_t(2 * part_count));
  for (int64_t i = 0; i < part_count; i++) {
    const TensorView& out = views.emplace_back(tensors.exactly(float_type(input), shape));
    const TensorView& lse = views.emplace_back(tensors.exactly(lse_type(), rows));
    parts.push_back({out.data, lse.data, out.type, lse.type, out.strides, lse.strides});
  }
  const TensorView out = tensors.result(float_type(input), shape, 0xa5), lse = tensors.result(lse_type(), rows, 0xa5);
  if (!tensors.complete()) return 0;
  const uint64_t before = tensors.checksum(out);
  StateMerge merged{rows.axes, rows.sizes, channels, parts.data(), part_count,  out.data,
                    lse.data,  out.type,   lse.type, out.strides,  lse.strides, 1};
  merge(merged);
  const std::vector<uint8_t> serial = tensors.bytes_of_block(out);
  merged.threads = 3;
  {
    const Uncounted uncounted;
    merge(merged);
  }
  GQA_REQUIRE(tensors.bytes_of_block(out) == serial);
  Tensors::fill(lse, 0xa5);
  GQA_REQUIRE(tensors.checksum(out) == before);
  return 0;
}
