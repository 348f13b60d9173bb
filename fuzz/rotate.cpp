// rotate.cpp: rotary embedding of any strides, positions and tables.
#include <algorithm>
#include <optional>

#include "coverage.h"
#include "dispatch.h"
#include "rotary.h"
#include "tensors.h"

using namespace gqa;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  Tensors tensors(input);
  Rotary r{};
  r.batch = input.below(4), r.heads = input.below(5), r.tokens = input.size(), r.head_dim = input.size();
  if (r.tokens > 200 || r.head_dim > 300) return 0;
  r.rotary_dim = input.flag() ? r.head_dim / 2 * 2 : 2 * std::min(r.head_dim / 2, input.size());
  r.interleaved = input.flag();
  const int64_t positions = 1 + input.below(40);

  const auto table = [&](DType& type, const char*& memory, int64_t& stride) {
    const TensorView x = tensors.packed(type = float_type(input), {2, {positions, r.rotary_dim / 2}});
    memory = x.data, stride = x.strides[0];
  };
  table(r.cos_type, r.cos, r.cos_stride);
  table(r.sin_type, r.sin, r.sin_stride);
  std::vector<int64_t> numbers;
  const bool is_shared = input.flag();
  for (int64_t i = 0; i < (is_shared ? 1 : r.batch) * r.tokens; i++) numbers.push_back(input.byte() % positions);
  r.position_stride = is_shared ? 0 : r.tokens;
  numbers.reserve(1);
  r.positions = numbers.data();
  if (r.tokens <= positions && input.flag()) {
    r.positions = nullptr;
    r.first_position = input.byte() % (positions - r.tokens + 1);
  }

  const Layout layout = input.flag() ? bshd : bhsd;
  Shape shape{4, {r.batch, 0, 0, r.head_dim}};
  shape.sizes[layout.head] = r.heads, shape.sizes[layout.token] = r.tokens;
  r.type = float_type(input);
  const TensorView x = tensors.packed(r.type, shape), out = tensors.packed(r.type, shape);
  if (!tensors.complete() || !x.has_elements()) return 0;
  r.x = x.data, r.x_strides = strides_of(x, layout);
  r.out = out.data, r.out_strides = strides_of(out, layout);
  const uint64_t before = tensors.checksum(out);
  std::vector<uint8_t> serial;
  for (const std::string& isa : available_isas()) {
    use_isa(isa);
    for (r.threads = 1; r.threads < 4; r.threads += 2) {
      std::optional<Uncounted> uncounted;
      if (r.threads > 1) uncounted.emplace();
      Tensors::fill(out, 0xa5);
      rotate(r);
      if (r.threads == 1) serial = tensors.bytes_of_block(out);
      else GQA_REQUIRE(serial == tensors.bytes_of_block(out));
    }
  }
  GQA_REQUIRE(tensors.checksum(out) == before);
  return 0;
}
