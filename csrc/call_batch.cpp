// call_batch.cpp: what a call writes, the sequences of a batch, and the computation itself.
#include <algorithm>

#include "call.h"

namespace gqa {

Shape Call::lse_shape() const {
  Shape shape{q_->axes - 1, {}};
  std::copy_n(q_->shape, shape.axes, shape.sizes);
  return shape;
}

Shape Call::out_shape() const {
  Shape shape = lse_shape();
  shape.sizes[shape.axes++] = a_.v_head_dim;
  return shape;
}

bool Call::check_output() {
  const TensorView& out = options_.out;
  if (!out.given()) return true;
  if (out.type != a_.out_type) {
    refusal_.type = out.type, refusal_.expected_type = a_.out_type;
    return refuse(Rule::dtype_as, "out", options_.out_type == DType::none ? "q" : "out_dtype");
  }
  if (!check_shape(out, "out", out_shape())) return false;
  if (!out.data) return true;
  if (!out.writable) return refuse(Rule::read_only, "out");
  if (!has_distinct_elements(out.shape, out.strides, out.axes, bytes_of(out.type)))
    return refuse(Rule::shares_itself, "out");
  if (share_memory(out, *q_)) return refuse(Rule::overlap, "out", "q");
  for (const Tensor* x : tensors_) {
    if (share_memory(out, x->data)) return refuse(Rule::overlap, "out", x->name);
    if (x->scale.given() && share_memory(out, x->scale)) return refuse(Rule::overlap_scale, "out", x->name);
  }
  if (subtrees_ && share_memory(out, *subtrees_)) return refuse(Rule::overlap, "out", "subtrees");
  if (options_.mask.given() && share_memory(out, options_.mask)) return refuse(Rule::overlap, "out", "mask");
  for (const TensorView& captured : options_.captured)
    if (share_memory(out, captured))
      return refuse(Rule::overlap, "out", "an array that score_mod or mask_mod captured");
  if (options_.sinks.given() && share_memory(out, options_.sinks)) return refuse(Rule::overlap, "out", "sinks");
  return true;
}

bool Call::check_positions(const Integers& kv_lengths, const Integers& query_offset) {
  const bool one_for_all = q_->axes == 3;  // a batch of one, whose axis is not there
  if (!integers_fit(kv_lengths, "kv_lengths", one_for_all)) return false;
  if (!integers_fit(query_offset, "query_offset", one_for_all || query_offset.shape.axes == 0)) return false;
  if (!kv_lengths.values) return true;
  const int64_t keys = past_keys_ + new_keys_;
  for (int64_t b = 0; b < q_sizes_.batch; b++)
    if (const int64_t length = kv_lengths.at(b); length < 0 || length > keys) {
      refusal_.index = b;
      return refuse_size(Rule::length, "kv_lengths", "", length, keys);
    }
  return true;
}

bool Call::integers_fit(const Integers& x, const char* name, bool one_for_all) {
  Shape expected{one_for_all ? 0 : 1, {}};
  expected.sizes[0] = q_sizes_.batch;
  return !x.given() || (x.shape.axes == expected.axes && (one_for_all || x.shape.sizes[0] == expected.sizes[0])) ||
         refuse_shape(Rule::shape, name, x.shape, expected);
}

bool Call::list_batch(const Integers& kv_lengths, const Integers& query_offset) {
  const int64_t keys = past_keys_ + new_keys_, past_store = int64_t(stores_.size()) - 1;
  sequences_.set_bounds(q_sizes_.batch, q_sizes_.tokens, store_shapes_, nullptr);
  sequences_.reserve(q_sizes_.batch, 2 * std::min(q_sizes_.batch, max_tokens));
  for (int64_t b = 0; b < q_sizes_.batch; b++) {
    Sequence sequence{};
    sequence.batch = sequence.mask_batch = b;
    sequence.queries = q_sizes_.tokens;
    sequence.keys = kv_lengths.given() ? kv_lengths.at(b) : keys;
    sequence.offset = query_offset.given() ? query_offset.at(b) : sequence.keys - sequence.queries;
    if (!sequences_.add_run(past_store, b, 0, past_keys_) || !sequences_.add_run(0, b, 0, new_keys_) ||
        !sequences_.add_sequence(sequence))
      return refuse(sequences_.refusal().rule, "");
  }
  return true;
}

SequenceList& Call::sequences(const MaskShape& mask_shape) {
  sequences_.set_slots(states_ ? states_->shape[0] : -1, subtrees_ ? subtrees_->shape[0] : 0);
  sequences_.set_bounds(q_sizes_.batch, q_sizes_.tokens, store_shapes_, options_.mask.given() ? &mask_shape : nullptr);
  return sequences_;
}

void Call::run(const TensorView& out, const TensorView& lse) {
  if (!out.has_elements() && !(lse.given() && lse.has_elements())) return;
  const TensorView four = batched(out);
  a_.out = four.data;
  a_.out_strides = strides_of(four, options_.layout);
  a_.out_channel_stride = four.strides[3];
  if (lse.given()) {
    a_.lse = lse.data;
    a_.lse_strides = rows_of(lse);
  }
  compute();
}

void Call::compute() {
  if (subtrees_) a_.subtrees = rows_of_states(*subtrees_);
  use_inputs();
  if (subtrees_) merge(a_);
  else attend(a_);
}

void Call::use_inputs() {
  use_contiguous(*q_, a_.q, a_.q_strides);
  for (size_t i = 0; i < stores_.size(); i++) {
    const Tensor &k = *tensors_[2 * i], &v = *tensors_[2 * i + 1];
    Store& store = stores_[i];
    use_contiguous(k.data, store.k, store.k_strides);
    use_contiguous(v.data, store.v, store.v_strides);
    if (k.scale.given()) use_scales(k.scale, store.k_scale, store.k_scale_strides);
    if (v.scale.given()) use_scales(v.scale, store.v_scale, store.v_scale_strides);
  }
  a_.stores = stores_.data();
  a_.threads = options_.threads;
  const std::vector<Sequence>& sequences = sequences_.finish();
  a_.sequences = sequences.data();
  a_.sequence_count = int64_t(sequences.size());
  plan_program();
}

// The memory of a tensor with contiguous channels: its own, or that of a copy.
void Call::use_contiguous(const TensorView& x, const char*& data, Strides& strides) {
  TensorView used = x;
  if (!has_contiguous_channels(x)) copies_.push_back(copy_of(x, used));
  data = used.data;
  strides = strides_of(batched(used), options_.layout);
}

void Call::use_scales(const TensorView& x, const char*& data, Strides& strides) const {
  data = x.data;
  strides = rows_of(x);
}

// The strides of a tensor without channels, (batch, heads, tokens) or one axis less, in the layout.
Strides Call::rows_of(const TensorView& x) const {
  TensorView y = x;
  if (x.axes == 2) {
    std::copy_n(x.strides, 2, y.strides + 1);
    y.strides[0] = 0;
  }
  return strides_of(y, options_.layout);
}

bool Call::check_shape(const TensorView& x, const char* name, const Shape& expected) {
  const Shape shape = x.whole_shape();
  return shape == expected || refuse_shape(Rule::shape, name, shape, expected);
}

bool Call::refuse(Rule rule, const char* argument, const char* other) {
  refusal_.rule = rule;
  refusal_.argument = argument;
  if (*other) refusal_.other = other;
  return false;
}

bool Call::refuse_shape(Rule rule, const char* argument, const Shape& shape, const Shape& expected) {
  refusal_.shape = shape, refusal_.expected_shape = expected;
  return refuse(rule, argument);
}

bool Call::refuse_size(Rule rule, const char* argument, const char* axis, int64_t number, int64_t expected,
                       const char* other) {
  refusal_.axis = axis;
  refusal_.number = number, refusal_.expected = expected;
  return refuse(rule, argument, other);
}

}  // namespace gqa
