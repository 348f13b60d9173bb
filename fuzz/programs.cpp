// programs.cpp: calls with score programs: any operations on any values, any arrays that they take elements of.
#include <algorithm>

#include "score_programs.h"

using namespace gqa;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  Tensors tensors(input);
  CallSizes sizes = read_sizes(input);
  sizes.v_head_dim = std::min<int64_t>(sizes.v_head_dim, 40), sizes.head_dim = std::min<int64_t>(sizes.head_dim, 40);
  const int64_t keys = input.size();
  const ReadProgram program = read_program(input, tensors, sizes, keys, false);
  if (!program.program) return 0;
  Options options = read_options(input, tensors, sizes, sizes.batch, keys);
  program.set(options);
  const Layout layout = options.layout;
  const TensorView q =
      tensors.make(float_type(input), shape_in(layout, sizes.batch, query_heads(sizes), sizes.queries, sizes.head_dim));
  const Tensor k = make_keys(input, tensors, "k", shape_in(layout, sizes.batch, sizes.kv_heads, keys, sizes.head_dim));
  const Tensor v =
      make_keys(input, tensors, "v", shape_in(layout, sizes.batch, sizes.kv_heads, keys, sizes.v_head_dim));
  int64_t offset = 0;
  Integers query_offset;
  if (input.flag()) offset = input.number(keys / 2), query_offset = {{0, {}}, &offset};

  // A visible NaN whose weight is 0 counts where nothing is asked, and does not where something is hidden.
  const ScoreProgram* const twin = tensors.content() == Content::ordinary ? program.opaque.get() : nullptr;
  check_call(
      input, tensors, options,
      [&](Call& call) {
        if (!call.set_query(q) || !call.set_keys(k, v, {}, {}) || !call.set_options(nullptr) ||
            !call.check_positions({}, query_offset))
          return false;
        return call.out_shape().sizes[0] > 1024 || call.list_batch({}, query_offset);
      },
      keys, true, twin, program.opaque_captured);
  return 0;
}
