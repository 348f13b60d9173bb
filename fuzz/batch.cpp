// batch.cpp: calls as gqa.attention makes them: q, k and v of one batch, a past, lengths and offsets.
#include <algorithm>

#include "attention_calls.h"

using namespace gqa;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  Tensors tensors(input);
  const CallSizes sizes = read_sizes(input);
  const int64_t new_keys = input.size(), past_keys = input.below(3) == 2 ? input.size() : 0;
  const bool is_batched = input.byte() < 0xc0;
  const int64_t keys = int64_t(uint64_t(new_keys) + uint64_t(past_keys)) & INT64_MAX;
  Options options = read_options(input, tensors, sizes, sizes.batch, keys);
  const Layout layout = options.layout;

  const int64_t heads = query_heads(sizes);
  const auto keys_of = [&](const char* name, int64_t tokens, int64_t channels) {
    return make_keys(input, tensors, name, shape_in(layout, sizes.batch, sizes.kv_heads, tokens, channels, is_batched));
  };
  const TensorView q =
      tensors.make(float_type(input), shape_in(layout, sizes.batch, heads, sizes.queries, sizes.head_dim, is_batched));
  Tensor k, v, past_key, past_value;
  k.name = "k", v.name = "v", past_key.name = "past_key", past_value.name = "past_value";
  if (input.byte() < 0xe0) k = keys_of("k", new_keys, sizes.head_dim), v = keys_of("v", new_keys, sizes.v_head_dim);
  if (past_keys > 0) {
    past_key = keys_of("past_key", past_keys, sizes.head_dim);
    past_value = keys_of("past_value", past_keys, sizes.v_head_dim);
  }
  if (input.rarely()) (input.flag() ? v : past_key) = Tensor{"v", {}, {}};

  const int64_t entries = std::min<int64_t>(is_batched ? sizes.batch : 1, 256);
  std::vector<int64_t> lengths, offsets;
  const auto integers = [&](std::vector<int64_t>& values, int64_t around) {
    Integers x;
    if (!input.flag()) return x;
    const bool single = input.flag();
    for (int64_t i = 0; i < (single ? 1 : entries); i++) values.push_back(input.number(around));
    values.reserve(1);
    x.shape = {single ? 0 : 1, {entries}};
    x.values = values.data();
    return x;
  };
  Integers kv_lengths = integers(lengths, keys), query_offset = integers(offsets, keys / 2);
  if (sizes.batch > entries && is_batched) {  // more entries than there are numbers: their shape alone
    kv_lengths.values = query_offset.values = nullptr;
    if (kv_lengths.given() || query_offset.given()) return 0;
  }

  check_call(
      input, tensors, options,
      [&](Call& call) {
        if (!call.set_query(q) || !call.set_keys(k, v, past_key, past_value) || !call.set_options(nullptr) ||
            !call.check_positions(kv_lengths, query_offset))
          return false;
        if (call.out_shape().sizes[0] > 1024) return true;  // more than are worth listing
        return call.list_batch(kv_lengths, query_offset);
      },
      keys, true);
  return 0;
}
