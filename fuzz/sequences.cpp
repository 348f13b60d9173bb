// sequences.cpp: calls as packed batches and caches make them: stores of any batch, and sequences that attend the runs
// that they list.
#include <algorithm>
#include <array>

#include "attention_calls.h"

using namespace gqa;

namespace {

struct ListedSequence {
  Sequence sequence;
  std::vector<Run> runs;
};

std::vector<ListedSequence> read_sequences(Input& input, const std::vector<Shape>& stores, int64_t mask_batch,
                                           int64_t& most_keys) {
  std::vector<ListedSequence> list(size_t(input.below(5)));
  int64_t token = 0;
  for (ListedSequence& item : list) {
    Sequence& s = item.sequence;
    s = {};
    s.batch = input.number(0);
    s.token = input.number(token);
    s.queries = input.number(input.below(8));
    s.padding = input.rarely() ? input.number(1) : 0;
    if (s.queries >= 0 && s.padding >= 0 && s.queries < 4096 && s.padding < 4096) token += s.queries + s.padding;
    int64_t keys = 0;
    for (int64_t n = input.below(6); n > 0; n--) {
      Run run{};
      run.store = input.number(input.below(int64_t(stores.size())));
      const bool known = run.store >= 0 && run.store < int64_t(stores.size());
      const Shape& store = stores[known ? size_t(run.store) : 0];
      run.batch = input.number(input.byte() % std::max<int64_t>(1, std::min<int64_t>(store.sizes[0], 256)));
      run.token = input.number(input.below(4));
      run.count = input.number(store.sizes[1] - run.token);
      if (run.count > 0 && run.count < (1 << 20)) keys += run.count;
      item.runs.push_back(run);
    }
    s.keys = input.number(keys);
    s.origin = input.flag() ? input.number(input.below(256) * 96) : 0;
    s.offset = input.number(keys);
    s.mask_batch = input.number(mask_batch > 0 ? input.below(std::min<int64_t>(mask_batch, 256)) : 0);
    s.mask_key = input.number(0);
    most_keys = std::max(most_keys, std::min<int64_t>(std::max<int64_t>(s.keys, 0), int64_t(1) << 40));
  }
  return list;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  Tensors tensors(input);
  CallSizes sizes = read_sizes(input);
  const MaskShape mask_shape{1 + input.below(3), sizes.queries, input.size()};
  Options options = read_options(input, tensors, sizes, mask_shape.batch, mask_shape.keys);
  const int64_t heads = query_heads(sizes);
  const TensorView q =
      tensors.make(float_type(input), shape_in(options.layout, sizes.batch, heads, sizes.queries, sizes.head_dim));

  std::vector<Tensor> stores;
  std::vector<Shape> shapes;  // (batch, tokens)
  const int64_t store_count = 1 + input.below(3);
  stores.reserve(size_t(2 * store_count));
  for (int64_t i = 0; i < store_count; i++) {
    const int64_t batch = input.size(), tokens = input.size();
    shapes.push_back({2, {batch, tokens}});
    for (const int64_t channels : {sizes.head_dim, sizes.v_head_dim})
      stores.push_back(
          make_keys(input, tensors, "a store", shape_in(options.layout, batch, sizes.kv_heads, tokens, channels)));
  }
  int64_t most_keys = 0;
  const std::vector<ListedSequence> list = read_sequences(input, shapes, mask_shape.batch, most_keys);

  // Rows that belong to two sequences would be written twice, by whoever comes last. What lies beyond q is refused.
  std::vector<std::array<int64_t, 3>> rows;  // batch, first token, end
  for (const ListedSequence& item : list) {
    const Sequence& s = item.sequence;
    if (std::min({s.token, s.queries, s.padding}) >= 0 && std::max({s.token, s.queries, s.padding}) < (1 << 20))
      rows.push_back({s.batch, s.token, s.token + s.queries + s.padding});
  }
  std::sort(rows.begin(), rows.end());
  for (size_t i = 1; i < rows.size(); i++)
    if (rows[i][0] == rows[i - 1][0] && rows[i][1] < rows[i - 1][2]) return 0;

  check_call(
      input, tensors, options,
      [&](Call& call) {
        if (!call.set_query(q)) return false;
        for (size_t i = 0; i < stores.size(); i += 2)
          if (!call.add_store(stores[i], stores[i + 1])) return false;
        if (!call.set_options(&mask_shape)) return false;
        SequenceList& sequences = call.sequences(mask_shape);
        sequences.reserve(int64_t(list.size()), 8 * int64_t(list.size()));
        for (const ListedSequence& item : list) {
          for (const Run& run : item.runs)
            if (!sequences.add_run(run.store, run.batch, run.token, run.count)) return false;
          if (!sequences.add_sequence(item.sequence)) return false;
        }
        return true;
      },
      most_keys, false);
  return 0;
}
