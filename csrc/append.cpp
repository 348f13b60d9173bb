#include "append.h"

#include <algorithm>

namespace gqa {
namespace {

// A tensor with its batch axis.
Tensor with_batch(const Tensor& x) {
  Tensor y = x;
  y.data = batched(x.data);
  if (x.scale.axes == 2) {
    y.scale.axes = 3;
    y.scale.shape[0] = 1, y.scale.strides[0] = 0;
    std::copy_n(x.scale.shape, 2, y.scale.shape + 1);
    std::copy_n(x.scale.strides, 2, y.scale.strides + 1);
  }
  return y;
}

bool share_memory(const Tensor& x, const Tensor& y) {
  for (const TensorView* a : {&x.data, &x.scale})
    for (const TensorView* b : {&y.data, &y.scale})
      if (a->given() && b->given() && share_memory(*a, *b)) return true;
  return false;
}

}  // namespace

bool Append::check(const Tensor& k, const Tensor& v, int axes, int64_t batch, int64_t tokens) {
  if (!v.data.given()) return refuse(Rule::missing, k.name, v.name);
  if (!k.data.given()) return refuse(Rule::missing, v.name, k.name);
  const int token_axis = layout_.token + axes - 4;
  if (k.data.axes != axes && tokens == any) {
    refusal_.axis = layout_.axes;
    refusal_.shape = k.data.whole_shape();
    return refuse(Rule::cache_axes, k.name);
  }
  for (const auto& [x, stored] : {std::pair(&k, &keys_), std::pair(&v, &values_)}) {
    Shape expected = stored->data.whole_shape();
    expected.sizes[0] = batch;
    expected.sizes[layout_.token] = tokens == any ? k.data.shape[token_axis] : tokens;
    std::copy(expected.sizes + 4 - axes, expected.sizes + 4, expected.sizes);
    expected.axes = axes;
    if (!check_shape(*x, expected)) return false;
  }
  for (const Tensor* x : {&k, &v})
    for (const Tensor* stored : {&keys_, &values_})
      if (share_memory(*x, *stored)) return refuse(Rule::shares_cache, x->name);
  k_ = with_batch(k), v_ = with_batch(v);
  return true;
}

bool Append::check_shape(const Tensor& x, Shape expected) {
  refusal_.expected_shape = expected;
  refusal_.shape = x.data.whole_shape();
  if (!(refusal_.shape == expected)) return refuse(Rule::shape, x.name);
  if (!x.scale.given()) return true;
  refusal_.expected_shape.axes--;
  refusal_.shape = x.scale.whole_shape();
  return refusal_.shape == refusal_.expected_shape || refuse(Rule::scale, x.name);
}

bool Append::spares_inputs(const TensorView& out) {
  for (const Tensor* x : {&k_, &v_})
    if (out.given() && share_memory({"out", out, {}}, *x)) return refuse(Rule::overlap, "out", x->name);
  return true;
}

bool Append::convert(const int64_t* counts) {
  if (!stored_k_.convert(k_, keys_.data.type, layout_, counts)) return refuse(Rule::not_finite, k_.name);
  if (!stored_v_.convert(v_, values_.data.type, layout_, counts)) return refuse(Rule::not_finite, v_.name);
  return true;
}

void Append::write(const std::vector<TokenMove>& moves) const {
  move_tokens(keys_, k(), moves, layout_);
  move_tokens(values_, v(), moves, layout_);
}

bool Append::refuse(Rule rule, const char* argument, const char* other) {
  refusal_.rule = rule;
  refusal_.argument = argument;
  refusal_.other = other;
  return false;
}

}  // namespace gqa
