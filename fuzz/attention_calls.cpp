#include "attention_calls.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "coverage.h"
#include "dispatch.h"
#include "elements.h"

namespace gqa {
namespace {

constexpr double max_work = 2e5;  // elements of the output times keys

std::vector<double> elements_of(const TensorView& x) {
  std::vector<double> elements;
  for_each_element(x, [&](const char* p) { elements.push_back(element_as_double(p, x.type)); });
  return elements;
}

bool close(const std::vector<double>& x, const std::vector<double>& y, double tolerance) {
  for (size_t i = 0; i < x.size(); i++)
    if (!(x[i] == y[i] || std::abs(x[i] - y[i]) <= tolerance * std::max(1.0, std::abs(x[i])))) return false;
  return true;
}

// Scores so small that rounding them changes a weight by little.
bool is_mild(const Tensors& tensors, const Options& options) {
  return tensors.content() == Content::ordinary && !options.program &&
         (options.default_scale || std::abs(options.scale) <= 0.5);
}

}  // namespace

CallSizes read_sizes(Input& input) {
  CallSizes sizes{};
  sizes.batch = input.rarely() ? input.size() : input.below(4);
  sizes.kv_heads = input.rarely() ? input.size() : 1 + input.below(3);
  sizes.group = input.rarely() ? input.size() : 1 + input.below(5);
  sizes.queries = input.size();
  sizes.head_dim = input.size();
  sizes.v_head_dim = input.flag() ? sizes.head_dim : input.size();
  return sizes;
}

int64_t query_heads(const CallSizes& sizes) {
  return int64_t(uint64_t(sizes.kv_heads) * uint64_t(sizes.group) & uint64_t(INT64_MAX));
}

Shape shape_in(Layout layout, int64_t batch, int64_t heads, int64_t tokens, int64_t channels, bool is_batched) {
  Shape shape{4, {batch, 0, 0, channels}};
  shape.sizes[layout.head] = heads;
  shape.sizes[layout.token] = tokens;
  if (!is_batched) shape = {3, {shape.sizes[1], shape.sizes[2], channels}};
  return shape;
}

Tensor make_keys(Input& input, Tensors& tensors, const char* name, const Shape& shape) {
  Tensor x;
  x.name = name;
  const bool quantized = input.below(5) == 4;
  x.data = tensors.make(quantized ? DType::i8 : float_type(input), shape);
  if (quantized) {
    Shape rows = x.data.whole_shape();
    rows.axes = std::max(rows.axes - 1, 0);
    x.scale = tensors.make(DType::f32, rows);
  }
  return x;
}

Options read_options(Input& input, Tensors& tensors, const CallSizes& sizes, int64_t mask_batch, int64_t keys) {
  Options options;
  const int64_t heads = query_heads(sizes);
  options.layout = input.flag() ? bshd : bhsd;
  options.causal = input.flag();
  if (input.flag()) options.left = input.number(input.below(64));
  if (input.flag()) options.right = input.number(input.below(64));
  if (input.flag()) {
    constexpr double scales[] = {0, 0.125, -0.5, 1, 100, 1e30, 1e31, HUGE_VAL, NAN};
    options.default_scale = false;
    options.scale = scales[input.below(9)];
  }
  constexpr double caps[] = {0, 0, 0, 2, 30, 1e-50, 3e38, -1, NAN};
  options.softcap = caps[input.below(9)];
  options.return_lse = input.flag();
  if (input.rarely()) options.out_type = float_type(input);
  else if (input.below(8) == 7) options.out_type = DType::f32;
  if (input.below(4) == 3) options.sinks = tensors.make(float_type(input), {heads});
  if (!tensors.complete()) options.sinks.data = nullptr;  // for sinks are read while a call is checked
  if (input.flag()) {
    const DType type = input.flag() ? DType::boolean : float_type(input);
    Shape shape{4, {mask_batch, heads, sizes.queries, keys}};
    for (int axis = 0; axis < 4; axis++)
      if (input.byte() & 1) shape.sizes[axis] = 1;
    const int missing = int(input.below(4));
    Shape given{4 - missing, {}};
    std::copy(shape.sizes + missing, shape.sizes + 4, given.sizes);
    options.mask = tensors.make(type, given);
  }
  return options;
}

void check_call(Input& input, Tensors& tensors, Options& options, const std::function<bool(Call&)>& prepare,
                int64_t keys, bool writes_all, const ScoreProgram* twin, const std::vector<TensorView>& twin_captured) {
  constexpr int64_t listed = 1 << 20, most = PTRDIFF_MAX / int64_t(sizeof(double));
  const TensorView& sinks = options.sinks;
  if (sinks.axes == 1 && sinks.shape[0] > listed && sinks.shape[0] <= most) return;  // memory that there may not be
  Call probe(options);
  try {
    if (!prepare(probe)) return;
  } catch (const std::bad_alloc&) {
    return;
  }
  const Shape shape = probe.out_shape();
  double work = double(keys) + 1;
  for (int axis = 0; axis < shape.axes; axis++) work *= double(std::max<int64_t>(shape.sizes[axis], 1));
  if (!tensors.complete() || !(work <= max_work)) return;

  constexpr uint8_t fillers[] = {0xa5, 0x5a, 0xc3};
  const TensorView out = tensors.result(probe.out_type(), shape, fillers[0]);
  TensorView lse;
  if (options.return_lse) lse = tensors.result(probe.lse_type(), probe.lse_shape(), fillers[0]);
  if (!tensors.complete()) return;
  if (input.flag()) options.out = out;
  const uint64_t inputs_before = tensors.checksum(out);
  const std::vector<bool> belongs = tensors.bytes_of_elements(out);

  std::vector<double> elements;
  for (const std::string& isa : available_isas()) {
    use_isa(isa);
    std::vector<uint8_t> serial;
    for (int turn = 0; turn < (twin ? 3 : 2); turn++) {
      Tensors::fill(out, fillers[turn]);
      const std::vector<uint8_t> before = tensors.bytes_of_block(out);
      Options now = options;
      now.threads = turn == 1 ? 3 : 1;
      if (turn == 2) now.program = twin, now.captured = twin_captured;
      Call call(now);
      GQA_REQUIRE(prepare(call));
      {
        std::optional<Uncounted> uncounted;
        if (now.threads > 1) uncounted.emplace();
        call.run(out, lse);
      }
      const std::vector<uint8_t> after = tensors.bytes_of_block(out);
      for (size_t i = 0; i < after.size(); i++) {
        if (!belongs[i]) GQA_REQUIRE(after[i] == before[i]);
        else if (turn > 0 && !(after[i] == fillers[turn] && !writes_all)) GQA_REQUIRE(after[i] == serial[i]);
      }
      if (turn == 0) serial = after;
    }
    const bool half = out.type == DType::f16 || out.type == DType::bf16;
    if (elements.empty()) elements = elements_of(out);
    else if (is_mild(tensors, options)) GQA_REQUIRE(close(elements, elements_of(out), half ? 0.03 : 3e-3));
  }
  if (lse.given()) Tensors::fill(lse, fillers[0]);
  GQA_REQUIRE(tensors.checksum(out) == inputs_before);
}

}  // namespace gqa
