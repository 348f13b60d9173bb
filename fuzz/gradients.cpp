// gradients.cpp: the backward pass as gqa.attention_vjp calls it: a forward call, what it gave, and any dout and dlse.
#include <algorithm>
#include <cmath>
#include <optional>

#include "coverage.h"
#include "dispatch.h"
#include "elements.h"
#include "gradient_call.h"
#include "score_programs.h"

using namespace gqa;

namespace {

constexpr double max_work = 5e4;  // query rows times keys times channels
constexpr int gradients = 5;      // dq, dk, dv, dmask, dsinks

struct Arguments {
  TensorView q;
  Tensor k, v;
  Integers kv_lengths, query_offset;

  bool prepare(Call& call) const {
    return call.set_query(q) && call.set_keys(k, v, {}, {}) && call.set_options(nullptr);
  }
  bool list(Call& call) const {
    return call.check_positions(kv_lengths, query_offset) && call.list_batch(kv_lengths, query_offset);
  }
};

Integers read_integers(Input& input, std::vector<int64_t>& values, int64_t entries, int64_t around) {
  if (!input.flag()) return {};
  const bool single = input.flag();
  for (int64_t i = 0; i < (single ? 1 : entries); i++) values.push_back(input.number(around));
  values.reserve(1);
  return {{single ? 0 : 1, {entries}}, values.data()};
}

bool close(const TensorView& x, const std::vector<double>& first, double tolerance) {
  size_t i = 0;
  bool all = true;
  for_each_element(x, [&](const char* p) {
    const double a = first[i++], b = element_as_double(p, x.type);
    all &= a == b || std::abs(a - b) <= tolerance * std::max(1.0, std::abs(a));
  });
  return all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  Tensors tensors(input);
  CallSizes sizes = read_sizes(input);
  sizes.batch = std::min<int64_t>(sizes.batch, 16), sizes.kv_heads = std::min<int64_t>(sizes.kv_heads, 64);
  const int64_t keys = input.size(), heads = query_heads(sizes);
  ReadProgram program;
  if (input.below(4) == 3) program = read_program(input, tensors, sizes, keys, true);
  Options options = read_options(input, tensors, sizes, sizes.batch, keys);
  if (program.program && program.program->result(output_score) >= 0 && program.program->result(output_slope) < 0)
    program.program = nullptr;  // refused before
  if (program.program) program.set(options);
  options.return_lse = true;
  const Layout layout = options.layout;
  const auto shape = [&](int64_t h, int64_t tokens, int64_t channels) {
    return shape_in(layout, sizes.batch, h, tokens, channels);
  };
  std::vector<int64_t> lengths, offsets;
  Arguments a;
  a.q = tensors.make(float_type(input), shape(heads, sizes.queries, sizes.head_dim));
  a.k.name = "k", a.k.data = tensors.make(float_type(input), shape(sizes.kv_heads, keys, sizes.head_dim));
  a.v.name = "v", a.v.data = tensors.make(float_type(input), shape(sizes.kv_heads, keys, sizes.v_head_dim));
  a.kv_lengths = read_integers(input, lengths, sizes.batch, keys);
  a.query_offset = read_integers(input, offsets, sizes.batch, keys / 2);

  Call forward(options);
  if (!a.prepare(forward) || !a.list(forward) || !tensors.complete()) return 0;
  const int64_t widest = std::max(sizes.head_dim, sizes.v_head_dim) + 1;
  if (!(double(sizes.batch) * double(heads) * double(sizes.queries + 1) * double(keys + 1) * double(widest) < max_work))
    return 0;
  GradientCall::Given given;
  given.out = tensors.result(forward.out_type(), forward.out_shape(), 0);
  given.lse = tensors.result(forward.lse_type(), forward.lse_shape(), 0);
  forward.run(given.out, given.lse);
  given.dout = tensors.make(float_type(input), forward.out_shape());
  if (input.flag()) given.dlse = tensors.make(float_type(input), forward.lse_shape());
  if (input.rarely()) given.lse = tensors.make(float_type(input), forward.lse_shape());
  const bool mask_grad = input.flag();
  GradientCall probe(options);
  if (!a.prepare(probe) || !probe.set_given(given, mask_grad) || !a.list(probe) || !tensors.complete()) return 0;

  TensorView results[gradients];
  const bool has[gradients] = {true, true, true, probe.has_dmask(), probe.has_dsinks()};
  const TensorView* const arguments[gradients] = {&a.q, &a.k.data, &a.v.data, &options.mask, &options.sinks};
  const uint64_t before = tensors.checksum({});
  for (int i = 0; i < gradients; i++)
    if (has[i]) results[i] = tensors.in_order(arguments[i]->type, arguments[i]->whole_shape());
  if (!tensors.complete()) return 0;

  std::vector<double> first[gradients];
  const bool mild = tensors.content() == Content::ordinary && !options.program && options.softcap == 0 &&
                    (options.default_scale || std::abs(options.scale) <= 0.5);
  for (const std::string& isa : available_isas()) {
    use_isa(isa);
    std::vector<uint8_t> serial[gradients];
    for (const int threads : {1, 3}) {
      std::vector<uint8_t> old[gradients];
      for (int i = 0; i < gradients; i++) {
        if (!has[i]) continue;
        Tensors::fill(results[i], threads == 1 ? 0xa5 : 0x5a);
        old[i] = tensors.bytes_of_block(results[i]);
      }
      Options now = options;
      now.threads = threads;
      GradientCall call(now);
      GQA_REQUIRE(a.prepare(call) && call.set_given(given, mask_grad) && a.list(call));
      {
        std::optional<Uncounted> uncounted;
        if (threads > 1) uncounted.emplace();
        call.run(results[0], results[1], results[2], results[3], results[4]);
      }
      for (int i = 0; i < gradients; i++) {
        if (!has[i]) continue;
        const std::vector<uint8_t> bytes = tensors.bytes_of_block(results[i]);
        const std::vector<bool> belongs = tensors.bytes_of_elements(results[i]);
        for (size_t j = 0; j < bytes.size(); j++) {
          if (!belongs[j]) GQA_REQUIRE(bytes[j] == old[i][j]);
          else if (threads > 1) GQA_REQUIRE(bytes[j] == serial[i][j]);
        }
        if (threads == 1) serial[i] = bytes;
      }
    }
    for (int i = 0; i < gradients; i++) {
      if (!has[i]) continue;
      const bool half = results[i].type == DType::f16 || results[i].type == DType::bf16;
      if (!first[i].empty()) GQA_REQUIRE(!mild || close(results[i], first[i], half ? 0.05 : 5e-3));
      else for_each_element(results[i], [&](char* p) { first[i].push_back(element_as_double(p, results[i].type)); });
    }
  }
  for (int i = 0; i < gradients; i++)
    if (has[i]) tensors.forget(results[i]);
  GQA_REQUIRE(tensors.checksum({}) == before);
  return 0;
}
