// caches.cpp: steps of a cache as gqa.KVCache and gqa.PagedKVCache make them, each against a plain list of all tokens.
#include <algorithm>
#include <numeric>
#include <optional>

#include "append.h"
#include "attention_calls.h"
#include "coverage.h"
#include "dispatch.h"
#include "pages.h"
#include "slots.h"

using namespace gqa;

namespace {

constexpr int64_t most_tokens = 160;  // of a sequence

struct Cache {
  int64_t batch, heads, channels, v_channels;
  Layout layout;
  Tensor k, v;          // slots, or pages
  Tensor all_k, all_v;  // what every sequence was given, in the order of its positions
  std::vector<int64_t> lengths;

  Shape of_tokens(int64_t entries, int64_t tokens, bool values) const {
    return shape_in(layout, entries, heads, tokens, values ? v_channels : channels);
  }
};

Tensor storage(Tensors& tensors, DType type, const Shape& shape) {
  Tensor x;
  x.name = "the cached k";
  x.data = tensors.packed(type, shape);
  if (type == DType::i8) {
    Shape rows = shape;
    rows.axes--;
    x.scale = tensors.exactly(DType::f32, rows);
  }
  return x;
}

// New tokens; now and then what is refused.
Tensor new_tokens(Input& input, Tensors& tensors, const char* name, const Shape& shape, const Tensor& stored) {
  if (!input.rarely()) {
    Tensor x;
    x.name = name;
    x.data =
        tensors.exactly(stored.data.type == DType::i8 || input.flag() ? float_type(input) : stored.data.type, shape);
    return x;
  }
  return make_keys(input, tensors, name, shape);
}

// On one thread and three, and into another array each time.
bool attend(Tensors& tensors, Options options, const std::function<bool(Call&)>& prepare, TensorView& first) {
  for (const int threads : {1, 3}) {
    options.threads = threads;
    Call call(options);
    if (!prepare(call)) return false;
    const TensorView out = tensors.in_order(call.out_type(), call.out_shape());
    {
      std::optional<Uncounted> uncounted;
      if (threads > 1) uncounted.emplace();
      call.run(out, {});
    }
    if (threads == 1) first = out;
    else GQA_REQUIRE(tensors.bytes_of_block(out) == tensors.bytes_of_block(first));
  }
  return true;
}

// The same rows over the plain lists.
bool attend_all(Tensors& tensors, const Options& options, const Cache& cache, const TensorView& q,
                const std::vector<Sequence>& sequences, TensorView& out) {
  const MaskShape mask_shape{0, 0, 0};
  return attend(
      tensors, options,
      [&](Call& call) {
        if (!call.set_query(q) || !call.add_store(cache.all_k, cache.all_v) || !call.set_options(&mask_shape))
          return false;
        SequenceList& list = call.sequences(mask_shape);
        list.reserve(int64_t(sequences.size()), int64_t(sequences.size()));
        for (size_t b = 0; b < sequences.size(); b++)
          if (!list.add_run(0, int64_t(b), 0, sequences[b].keys) || !list.add_sequence(sequences[b])) return false;
        return true;
      },
      out);
}

// New tokens at the end of the plain lists, from the packed or batched ones that were stored.
void remember(Cache& cache, const Append& append, const std::vector<int64_t>& counts, bool packed) {
  std::vector<TokenMove> moves;
  int64_t token = 0;
  for (size_t b = 0; b < counts.size(); b++) {
    moves.push_back({int64_t(b), cache.lengths[b], packed ? 0 : int64_t(b), packed ? token : 0, counts[b]});
    token += counts[b];
  }
  move_tokens(cache.all_k, append.k(), moves, cache.layout);
  move_tokens(cache.all_v, append.v(), moves, cache.layout);
  for (size_t b = 0; b < counts.size(); b++) cache.lengths[b] += counts[b];
}

bool fit(const Cache& cache, const std::vector<int64_t>& counts) {
  for (size_t b = 0; b < counts.size(); b++)
    if (counts[b] > most_tokens - cache.lengths[b]) return false;
  return true;
}

void run_slots(Input& input, Tensors& tensors, Cache& cache, Options options) {
  const int64_t capacity = 1 + input.below(40), window = input.flag() ? 1 + input.below(capacity) : 0;
  const DType type = input.below(4) == 3 ? DType::i8 : float_type(input);
  cache.k = storage(tensors, type, cache.of_tokens(cache.batch, capacity, false));
  cache.v = storage(tensors, type, cache.of_tokens(cache.batch, capacity, true));
  cache.all_k = storage(tensors, type, cache.of_tokens(cache.batch, most_tokens, false));
  cache.all_v = storage(tensors, type, cache.of_tokens(cache.batch, most_tokens, true));
  Slots slots(capacity, window, cache.lengths, cache.lengths);
  if (window > 0) options.left = std::min(options.left, window - 1);
  for (int64_t steps = input.below(8); steps > 0; steps--) {
    const bool appends = input.below(4) != 3, attends = input.flag();
    const int64_t tokens = input.below(6) == 5 ? input.below(64) : input.below(4),
                  queries = appends ? tokens : 1 + input.below(3);
    const TensorView q = tensors.exactly(float_type(input),
                                         shape_in(cache.layout, cache.batch, 2 * cache.heads, queries, cache.channels));
    Append append(cache.k, cache.v, cache.layout);
    std::vector<int64_t> listed;
    if (appends) {
      const Tensor k = new_tokens(input, tensors, "k", cache.of_tokens(cache.batch, tokens, false), cache.k),
                   v = new_tokens(input, tensors, "v", cache.of_tokens(cache.batch, tokens, true), cache.v);
      Integers counts;
      if (input.flag()) {
        for (int64_t b = 0; b < cache.batch; b++)
          listed.push_back(input.number(tokens > 0 ? input.below(tokens + 1) : 0));
        counts = {{1, {cache.batch}}, listed.data()};
      }
      if (!tensors.complete() || !append.check(k, v, 4, cache.batch, Append::any) ||
          !slots.accepts(counts, append.tokens()))
        continue;
      if (!fit(cache, slots.counts()) || append.tokens() != tokens || !append.convert(slots.counts().data())) return;
    }
    TensorView out, expected;
    bool computed = false;
    const std::vector<int64_t> counts = slots.counts();
    if (attends) {
      const MaskShape mask_shape{cache.batch, queries, slots.longest()};
      computed = attend(
          tensors, options,
          [&](Call& call) {
            return call.set_query(q) && call.add_store(cache.k, cache.v) &&
                   (!appends || call.add_store(append.k(), append.v())) && call.set_options(&mask_shape) &&
                   slots.list(call.sequences(mask_shape), queries, options.left);
          },
          out);
    }
    std::vector<Sequence> sequences;
    for (int64_t b = 0; b < cache.batch; b++) {
      const int64_t count = appends ? counts[size_t(b)] : 0, length = cache.lengths[size_t(b)];
      Sequence s{};
      s.batch = b;
      s.queries = appends ? std::min(queries, count) : queries;
      s.padding = queries - s.queries;
      s.keys = length + count;
      s.offset = appends ? length : length - queries;
      sequences.push_back(s);
    }
    if (appends) {
      append.write(slots.moves());
      remember(cache, append, counts, false);
      slots.advance();
    }
    if (computed) {
      GQA_REQUIRE(attend_all(tensors, options, cache, q, sequences, expected));
      GQA_REQUIRE(tensors.bytes_of_block(out) == tensors.bytes_of_block(expected));
    }
    GQA_REQUIRE(slots.lengths() == cache.lengths);
  }
}

void run_pages(Input& input, Tensors& tensors, Cache& cache, const Options& options) {
  const int64_t page_size = 1 + input.below(20), pages = 1 + input.below(24);
  const DType type = input.below(4) == 3 ? DType::i8 : float_type(input);
  cache.k = storage(tensors, type, cache.of_tokens(pages, page_size, false));
  cache.v = storage(tensors, type, cache.of_tokens(pages, page_size, true));
  cache.all_k = storage(tensors, type, cache.of_tokens(cache.batch, most_tokens, false));
  cache.all_v = storage(tensors, type, cache.of_tokens(cache.batch, most_tokens, true));
  std::vector<int64_t> unused(static_cast<size_t>(pages));
  std::iota(unused.begin(), unused.end(), 0);
  std::vector<std::vector<int64_t>> tables(static_cast<size_t>(cache.batch));
  for (int64_t steps = input.below(8); steps > 0; steps--) {
    const bool appends = input.below(4) != 3, attends = input.flag();
    std::vector<int64_t> queries, counts;
    for (int64_t b = 0; b < cache.batch; b++) queries.push_back(input.below(6) == 5 ? input.below(40) : input.below(4));
    counts = appends ? queries : std::vector<int64_t>(queries.size(), 0);
    const int64_t sum = std::accumulate(queries.begin(), queries.end(), int64_t(0));
    if (!fit(cache, counts)) return;
    const auto packed = [&](int64_t heads, int64_t channels) { return shape_in(bshd, 1, heads, sum, channels, false); };
    const TensorView q = tensors.exactly(float_type(input), packed(2 * cache.heads, cache.channels));
    Append append(cache.k, cache.v, bshd);
    if (appends) {
      const Tensor k = new_tokens(input, tensors, "k", packed(cache.heads, cache.channels), cache.k),
                   v = new_tokens(input, tensors, "v", packed(cache.heads, cache.v_channels), cache.v);
      if (!tensors.complete() || !append.check(k, v, 3, 1, sum)) continue;
      if (!append.convert(&sum)) return;
    }
    std::vector<PagedSequence> paged;
    for (size_t b = 0; b < tables.size(); b++) {
      while (int64_t(tables[b].size()) * page_size < cache.lengths[b] + counts[b]) {
        if (unused.empty()) return;
        const size_t i = size_t(input.byte()) % unused.size();
        tables[b].push_back(unused[i]);
        unused.erase(unused.begin() + std::ptrdiff_t(i));
      }
      paged.push_back({tables[b].data(), int64_t(tables[b].size()), cache.lengths[b], queries[b], counts[b]});
    }
    TensorView out, expected;
    const MaskShape mask_shape{cache.batch, most_tokens, most_tokens};
    const bool computed = attends && attend(
                                         tensors, options,
                                         [&](Call& call) {
                                           return call.set_query(q) && call.add_store(cache.k, cache.v) &&
                                                  (!appends || call.add_store(append.k(), append.v())) &&
                                                  call.set_options(&mask_shape) &&
                                                  list_pages(paged, page_size, call.sequences(mask_shape));
                                         },
                                         out);
    std::vector<Sequence> sequences;
    int64_t token = 0;
    for (const PagedSequence& p : paged) {
      Sequence s{};
      s.token = token, s.queries = p.queries;
      s.keys = p.length + p.count;
      s.offset = s.keys - s.queries;
      token += p.queries;
      sequences.push_back(s);
    }
    if (appends) {
      append.write(page_moves(paged, page_size));
      remember(cache, append, counts, true);
    }
    if (computed) {
      GQA_REQUIRE(attend_all(tensors, options, cache, q, sequences, expected));
      GQA_REQUIRE(tensors.bytes_of_block(out) == tensors.bytes_of_block(expected));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  Tensors tensors(input);
  const bool paged = input.flag();
  Cache cache{};
  cache.batch = 1 + input.below(3), cache.heads = 1 + input.below(3);
  cache.channels = 1 + input.below(20), cache.v_channels = input.flag() ? cache.channels : 1 + input.below(20);
  cache.layout = paged || input.flag() ? bshd : bhsd;
  cache.lengths.assign(size_t(cache.batch), 0);
  Options options;
  options.layout = cache.layout;
  options.causal = input.flag();
  if (input.flag()) options.left = input.below(64);
  if (input.flag()) options.right = input.below(64);
  if (input.rarely()) options.softcap = 2;
  if (paged) run_pages(input, tensors, cache, options);
  else run_slots(input, tensors, cache, options);
  return 0;
}
