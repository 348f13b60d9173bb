#include "mapped_gradient.h"

#include <algorithm>

namespace gqa {

bool MappedGradient::is_well_formed() const {
  const int own = operands_[q].own_axes;
  const GradientBuffers& g = gradients_;
  return operands_are_well_formed() && !operands_[past_key].given() && operands_[k].given() && operands_[v].given() &&
         fits(given_.dout, own, own) && fits(given_.out, own, own) && fits(given_.lse, own - 1, own - 1) &&
         fits(given_.dlse, own - 1, own - 1) && is_like(g.dq, operands_[q]) && is_like(g.dk, operands_[k]) &&
         is_like(g.dv, operands_[v]) && (!g.dmask.given() || is_like(g.dmask, operands_[mask])) &&
         (!g.dsinks.given() || is_like(g.dsinks, operands_[sinks]));
}

bool MappedGradient::is_like(const Buffer& gradient, const Buffer& operand) const {
  return gradient.given() && gradient.type == operand.type && is_result(gradient, operand.own_axes) &&
         std::equal(gradient.own_sizes(), gradient.sizes + gradient.axes, operand.own_sizes());
}

// Sums over the batch (by a mask, by sinks) are of one entry each.
bool MappedGradient::is_one_call() const {
  const Buffer* const given[] = {&given_.dout, &given_.out, &given_.lse, &given_.dlse};
  return operands_are_one_call() && std::all_of(given, given + 4, [&](const Buffer* x) { return folds(*x); }) &&
         !gradients_.dmask.given() && !gradients_.dsinks.given();
}

bool MappedGradient::run() {
  const int64_t count = entries();
  if (count == 0) return true;
  if (is_one_call()) return differentiate({0, count});
  for (int64_t i = 0; i < count; i++)
    if (!differentiate({i, 1})) return false;
  return true;
}

bool MappedGradient::differentiate(const Entries& entries) {
  std::vector<int64_t> lengths, offsets;
  std::vector<char> unwanted;
  const Integers kv_lengths_given = integers(operands_[kv_lengths], entries, lengths),
                 query_offset_given = integers(operands_[query_offset], entries, offsets);
  options_.mask = mask_view(entries);
  if (const Buffer& s = operands_[sinks]; s.given()) options_.sinks = own_view(s, entry(s, entries.first));
  const TensorView query = batched_view(operands_[q], entries);
  const Tensor key = tensor(k, "k", entries), value = tensor(v, "v", entries);
  const GradientCall::Given given{batched_view(given_.dout, entries), batched_view(given_.out, entries),
                                  batched_view(given_.lse, entries, 3),
                                  given_.dlse.given() ? batched_view(given_.dlse, entries, 3) : TensorView{}};
  const Buffer& m = gradients_.dmask;
  GradientCall call(options_);
  const bool fits = call.set_query(query) && call.set_keys(key, value, {}, {}) && call.set_options(nullptr) &&
                    call.set_given(given, m.given()) && call.check_positions(kv_lengths_given, query_offset_given) &&
                    call.list_batch(kv_lengths_given, query_offset_given);
  if (fits)
    call.run(batched_view(gradients_.dq, entries), batched_view(gradients_.dk, entries),
             batched_view(gradients_.dv, entries), m.given() ? own_view(m, entry(m, entries.first)) : TensorView{},
             sinks_view(unwanted, entries));
  else refusal_ = call.refusal();
  return fits;
}

// Where the gradient by sinks is written, which a call with sinks always computes.
TensorView MappedGradient::sinks_view(std::vector<char>& unwanted, const Entries& entries) const {
  const Buffer &s = operands_[sinks], &wanted = gradients_.dsinks;
  if (!s.given()) return {};
  if (wanted.given()) return own_view(wanted, entry(wanted, entries.first));
  unwanted.resize(size_t(s.own_bytes()));
  return own_view(s, unwanted.data());
}

}  // namespace gqa
