// call_states.cpp: calls that hand over raw states, or merge those that others have handed over.
#include <algorithm>

#include "call.h"

namespace gqa {
namespace {

const char* const state_axes = "slots, heads, queries, v_head_dim + 2";
constexpr int sums = 2;  // m and l, behind a row's o

}  // namespace

bool Call::set_subtrees(const TensorView& states, int64_t kv_heads) {
  if (states.axes != 4) {
    refusal_.axis = state_axes;
    return refuse_shape(Rule::axes, "subtrees", states.whole_shape(), {});
  }
  if (kv_heads < 1 || q_sizes_.heads % kv_heads != 0)
    return refuse_size(Rule::heads, "kv_heads", "", kv_heads, q_sizes_.heads, "q");
  subtrees_ = &states;
  a_.kv_heads = kv_heads;
  a_.v_head_dim = states.shape[3] - sums;
  if (states.type == DType::f64) a_.arithmetic = Arithmetic::f64;
  const Shape expected{4, {states.shape[0], q_sizes_.heads, q_sizes_.tokens, std::max<int64_t>(states.shape[3], sums)}};
  const Shape shape = states.whole_shape();
  if (!std::equal(shape.sizes, shape.sizes + 4, expected.sizes))
    return refuse_shape(Rule::shape, "subtrees", shape, expected);
  if (a_.v_head_dim > max_channels)
    return refuse_size(Rule::at_most, "subtrees", "v_head_dim", a_.v_head_dim, max_channels);
  if (states.type != lse_type()) {
    refusal_.type = states.type, refusal_.expected_type = lse_type();
    return refuse(Rule::dtype_as, "subtrees", "lse");
  }
  return has_contiguous_channels(states) || refuse(Rule::contiguous, "subtrees");
}

bool Call::set_states(const TensorView& states) {
  if (states.axes != 4) {
    refusal_.axis = state_axes;
    return refuse_shape(Rule::axes, "states", states.whole_shape(), {});
  }
  const Shape expected{4, {states.shape[0], q_sizes_.heads, q_sizes_.tokens, a_.v_head_dim + sums}};
  const Shape shape = states.whole_shape();
  if (!std::equal(shape.sizes, shape.sizes + 4, expected.sizes))
    return refuse_shape(Rule::shape, "states", shape, expected);
  if (states.type != lse_type()) {
    refusal_.type = states.type, refusal_.expected_type = lse_type();
    return refuse(Rule::dtype_as, "states", "lse");
  }
  if (!states.writable) return refuse(Rule::read_only, "states");
  if (!has_contiguous_channels(states)) return refuse(Rule::contiguous, "states");
  if (!has_distinct_elements(states.shape, states.strides, states.axes, bytes_of(states.type)))
    return refuse(Rule::shares_itself, "states");
  if (share_memory(states, *q_)) return refuse(Rule::overlap, "states", "q");
  for (const Tensor* x : tensors_) {
    if (share_memory(states, x->data)) return refuse(Rule::overlap, "states", x->name);
    if (x->scale.given() && share_memory(states, x->scale)) return refuse(Rule::overlap_scale, "states", x->name);
  }
  states_ = &states;
  return true;
}

StateRows Call::rows_of_states(const TensorView& x) const {
  return {x.data, {x.strides[0], x.strides[1], x.strides[2]}};
}

void Call::run_to_states() {
  if (!states_->has_elements()) return;
  a_.states = rows_of_states(*states_);
  compute();
}

}  // namespace gqa
