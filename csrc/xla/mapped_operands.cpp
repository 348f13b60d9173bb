#include "mapped_operands.h"

#include <algorithm>

#include "../elements.h"

namespace gqa {
namespace {

// Axes of size 1 before those that there are.
TensorView with_axes(TensorView view, int axes) {
  const int missing = axes - view.axes;
  if (missing <= 0) return view;
  std::copy_backward(view.shape, view.shape + view.axes, view.shape + axes);
  std::copy_backward(view.strides, view.strides + view.axes, view.strides + axes);
  std::fill_n(view.shape, missing, 1);
  std::fill_n(view.strides, missing, 0);
  view.axes = axes;
  return view;
}

}  // namespace

int64_t Buffer::own_bytes() const {
  int64_t size = bytes;
  for (int axis = 0; axis < own_axes; axis++) size *= own_sizes()[axis];
  return size;
}

TensorView own_view(const Buffer& x, char* data) {
  TensorView view;
  view.data = data;
  view.axes = x.own_axes;
  view.type = x.type;
  int64_t stride = x.bytes;
  for (int axis = x.own_axes - 1; axis >= 0; axis--) {
    view.shape[axis] = x.own_sizes()[axis];
    view.strides[axis] = stride;
    stride *= view.shape[axis];
  }
  return view;
}

bool MappedOperands::operands_are_well_formed() const {
  const int own = operands_[q].own_axes;
  const auto is_position = [&](const Buffer& x) {
    return fits(x, 0, 1) && (!x.given() || x.own_axes == 0 || x.own_sizes()[0] == batch());
  };
  return (own == 3 || own == 4) && result_.given() && is_result(result_, own) &&
         std::all_of(operands_ + q, operands_ + mask, [&](const Buffer& x) { return fits(x, own, own); }) &&
         fits(operands_[mask], 0, 4) && fits(operands_[sinks], 1, 1) && is_position(operands_[query_offset]) &&
         is_position(operands_[kv_lengths]);
}

// Whether a buffer, if there is one, has so many own axes, and in front of them those of the result, or axes of size 1.
bool MappedOperands::fits(const Buffer& x, int fewest, int most) const {
  if (!x.given()) return true;
  if (x.own_axes < fewest || x.own_axes > most || x.front_axes() != result_.front_axes()) return false;
  for (int axis = 0; axis < x.front_axes(); axis++)
    if (x.sizes[axis] != 1 && x.sizes[axis] != result_.sizes[axis]) return false;
  return true;
}

bool MappedOperands::is_result(const Buffer& x, int axes) const {
  return fits(x, axes, axes) && (!x.given() || differs_everywhere(x));
}

int64_t MappedOperands::entries() const {
  int64_t count = 1;
  for (int axis = 0; axis < result_.front_axes(); axis++) count *= result_.sizes[axis];
  return count;
}

bool MappedOperands::is_same_for_all(const Buffer& x) const {
  return std::all_of(x.sizes, x.own_sizes(), [](int64_t size) { return size == 1; });
}

bool MappedOperands::differs_everywhere(const Buffer& x) const {
  return std::equal(x.sizes, x.own_sizes(), result_.sizes);
}

// Whether all entries can lie along one batch axis: of stride 0 where a tensor without a batch is the same for all.
bool MappedOperands::folds(const Buffer& x) const {
  return !x.given() || differs_everywhere(x) || (is_same_for_all(x) && batch() == 1);
}

bool MappedOperands::operands_are_one_call() const {
  if (entries() == 1) return true;
  const Buffer& m = operands_[mask];
  const int64_t mask_batch = m.given() && m.own_axes == 4 ? m.own_sizes()[0] : 1;
  const bool mask_folds =
      !m.given() || (differs_everywhere(m) && mask_batch == batch()) || (is_same_for_all(m) && mask_batch == 1);
  const Buffer& s = operands_[sinks];
  return std::all_of(operands_ + q, operands_ + mask, [&](const Buffer& x) { return folds(x); }) && mask_folds &&
         (!s.given() || is_same_for_all(s));
}

// Where an entry begins; entries are counted along the axes in front of the results.
char* MappedOperands::entry(const Buffer& x, int64_t number) const {
  int64_t place = 0, stride = 1;
  for (int axis = x.front_axes() - 1; axis >= 0; axis--) {
    if (x.sizes[axis] != 1) place += number % result_.sizes[axis] * stride;
    number /= result_.sizes[axis];
    stride *= x.sizes[axis];
  }
  return x.data + place * x.own_bytes();
}

// A tensor with a batch axis in front of its heads, along which the entries lie.
TensorView MappedOperands::batched_view(const Buffer& x, const Entries& entries, int axes) const {
  TensorView view = with_axes(own_view(x, entry(x, entries.first)), axes);
  if (x.own_axes < axes) view.strides[0] = x.own_bytes();
  if (entries.count == 1) return view;
  if (!differs_everywhere(x)) view.strides[0] = 0;
  view.shape[0] *= entries.count;
  return view;
}

// A mask keeps the axes that it broadcasts along.
TensorView MappedOperands::mask_view(const Entries& entries) const {
  const Buffer& x = operands_[mask];
  if (!x.given()) return {};
  TensorView view = own_view(x, entry(x, entries.first));
  if (entries.count == 1 || !differs_everywhere(x)) return view;
  view = with_axes(view, 4);
  if (x.own_axes < 4) view.strides[0] = x.own_bytes();
  view.shape[0] *= entries.count;
  return view;
}

Tensor MappedOperands::tensor(Operand operand, const char* name, const Entries& entries) const {
  const Buffer& x = operands_[operand];
  return {name, x.given() ? batched_view(x, entries) : TensorView{}, {}};
}

// One number for each batch entry.
Integers MappedOperands::integers(const Buffer& x, const Entries& entries, std::vector<int64_t>& values) const {
  if (!x.given()) return {};
  for (int64_t i = 0; i < entries.count; i++) {
    const char* const numbers = entry(x, entries.first + i);
    for (int64_t b = 0; b < batch(); b++)
      values.push_back(integer_at(numbers + (x.own_axes == 0 ? 0 : b * x.bytes), x.is_signed, x.bytes));
  }
  Shape shape{1, {}};
  shape.sizes[0] = int64_t(values.size());
  return {shape, values.data()};
}

}  // namespace gqa
