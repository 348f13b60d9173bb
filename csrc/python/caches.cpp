#include "caches.h"

#include "refusals.h"

namespace gqa {

void NewTokens::read(Views& views) {
  k = items[0] == Py_None ? Tensor{"k", {}, {}} : views.tensor(items[0], "k");
  v = items[1] == Py_None ? Tensor{"v", {}, {}} : views.tensor(items[1], "v");
}

void refuse_size(Rule rule, const char* argument, const char* axis, int64_t number, int64_t expected,
                 const char* other) {
  Refusal refusal{};
  refusal.rule = rule, refusal.argument = argument, refusal.axis = axis, refusal.other = other;
  refusal.number = number, refusal.expected = expected;
  raise(refusal);
}

void check_query(const TensorView& q, const TensorView& keys, int axes, Layout layout) {
  if (q.axes != axes) {
    Refusal refusal{};
    refusal.rule = Rule::cache_axes, refusal.argument = "q";
    refusal.axis = axes == 4 ? layout.axes : "tokens, heads, head_dim";
    refusal.shape = q.whole_shape();
    raise(refusal);
  }
  const int64_t heads = q.shape[layout.head + axes - 4], kv_heads = keys.shape[layout.head];
  const int64_t channels = q.shape[axes - 1];
  if (heads % kv_heads != 0) refuse_size(Rule::heads, "the cache", "", kv_heads, heads, "q");
  if (channels != keys.shape[3]) refuse_size(Rule::size_as, "q", "head_dim", channels, keys.shape[3], "the cache");
}

}  // namespace gqa
