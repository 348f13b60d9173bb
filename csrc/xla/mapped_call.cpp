#include "mapped_call.h"

namespace gqa {

bool MappedCall::is_well_formed() const {
  return operands_are_well_formed() && is_result(lse_, operands_[q].own_axes - 1);
}

bool MappedCall::run() {
  const int64_t count = entries();
  if (count == 0) return true;
  if (operands_are_one_call()) return attend({0, count});
  for (int64_t i = 0; i < count; i++)
    if (!attend({i, 1})) return false;
  return true;
}

bool MappedCall::attend(const Entries& entries) {
  std::vector<int64_t> lengths, offsets;
  const Integers kv_lengths_given = integers(operands_[kv_lengths], entries, lengths),
                 query_offset_given = integers(operands_[query_offset], entries, offsets);
  options_.mask = mask_view(entries);
  if (const Buffer& s = operands_[sinks]; s.given()) options_.sinks = own_view(s, entry(s, entries.first));
  options_.out = batched_view(result_, entries);
  options_.out.writable = true;
  const TensorView query = batched_view(operands_[q], entries);
  const Tensor key = tensor(k, "k", entries), value = tensor(v, "v", entries),
               earlier_key = tensor(past_key, "past_key", entries),
               earlier_value = tensor(past_value, "past_value", entries);
  Call call(options_);
  const bool fits = call.set_query(query) && call.set_keys(key, value, earlier_key, earlier_value) &&
                    call.set_options(nullptr) && call.check_positions(kv_lengths_given, query_offset_given) &&
                    call.list_batch(kv_lengths_given, query_offset_given);
  if (fits) call.run(options_.out, lse_.given() ? batched_view(lse_, entries, 3) : TensorView{});
  else refusal_ = call.refusal();
  return fits;
}

}  // namespace gqa
