// call_program.cpp: the score program of a call, and the arrays that it takes elements of.
#include <limits>

#include "call.h"
#include "elements.h"
#include "rewrites.h"

namespace gqa {
namespace {

// Calls f(element) for every element of a tensor of integers until it returns false; returns whether it never did.
template <class F> bool each_element(const CapturedArray& x, const F& f) {
  int64_t index[max_array_axes] = {};
  const int last = x.axes - 1;
  for (const char* row = x.data;;) {
    for (int64_t i = 0; i < x.sizes[last]; i++)
      if (!f(row + i * x.strides[last])) return false;
    int axis = last - 1;
    for (; axis >= 0; axis--) {
      row += x.strides[axis];
      if (++index[axis] < x.sizes[axis]) break;
      row -= index[axis] * x.strides[axis];
      index[axis] = 0;
    }
    if (axis < 0) return true;
  }
}

// Whether 32 bits hold every element; the first that they do not hold is put into `wide`.
bool fits_32_bits(const CapturedArray& x, int64_t& wide) {
  const auto fits = [&](int64_t element) {
    wide = element;
    return int32_t(element) == element;
  };
  switch (x.type) {
    case DType::i64: return each_element(x, [&](const char* p) { return fits(element<int64_t>(p)); });
    case DType::u64:
      return each_element(x, [&](const char* p) {
        const uint64_t element_ = element<uint64_t>(p);
        return fits(element_ > uint64_t(unbounded) ? unbounded : int64_t(element_));
      });
    case DType::u32: return each_element(x, [&](const char* p) { return fits(element<uint32_t>(p)); });
    default: return true;
  }
}

}  // namespace

bool Call::set_program() {
  const ScoreProgram* const program = options_.program;
  if (!program) return true;
  if (program->has_wide_constants() && a_.arithmetic == Arithmetic::f32)
    for (const Instruction& instruction : program->instructions())
      if (instruction.operation == Operation::constant_whole && int32_t(instruction.whole) != instruction.whole) {
        refusal_.number = instruction.whole;
        return refuse(Rule::program_constant, "");
      }
  captured_.reserve(options_.captured.size());
  for (size_t i = 0; i < options_.captured.size(); i++)
    if (!set_captured(i, options_.captured[i])) return false;
  program_ = {program, nullptr, captured_.data()};
  a_.program = &program_;
  return true;
}

// By the numbers that its inputs may be, which are known once the sequences are.
void Call::plan_program() {
  if (!a_.program) return;
  const auto small = [](int64_t x) { return x < small_numbers && x > -small_numbers; };
  bool all_small = small(a_.query_heads);
  for (int64_t i = 0; i < a_.sequence_count; i++) {
    const Sequence& s = a_.sequences[i];
    all_small &= small(s.origin) && small(s.offset) && small(s.origin + s.keys) && small(s.mask_batch) &&
                 small(s.origin + s.offset) && small(s.origin + s.offset + s.queries);
  }
  program_.plan = &options_.program->plan(a_.query_heads == a_.kv_heads, all_small);
}

bool Call::set_captured(size_t index, const TensorView& view) {
  const ScoreProgram::Array& expected = options_.program->arrays()[index];
  const char* const name = expected.name.c_str();
  refusal_.number = view.axes, refusal_.expected = expected.axes;
  if (refusal_.number != refusal_.expected) return refuse(Rule::program_rank, name);
  if (!view.has_elements()) return refuse_shape(Rule::program_empty, name, view.whole_shape(), {});
  CapturedArray& array = captured_.emplace_back();
  array.data = view.data;
  array.type = view.type;
  array.axes = view.axes;
  int64_t reach = 0;
  array.near = true;
  for (int axis = 0; axis < view.axes; axis++) {
    array.sizes[axis] = view.shape[axis];
    if (!view.data) continue;
    array.strides[axis] = view.shape[axis] == 1 ? 0 : view.strides[axis];
    const int64_t stride = array.strides[axis] < 0 ? -array.strides[axis] : array.strides[axis];
    int64_t extent;
    if (__builtin_mul_overflow(stride, view.shape[axis] - 1, &extent) ||
        __builtin_add_overflow(reach, extent, &reach) || reach > std::numeric_limits<int32_t>::max() ||
        view.shape[axis] > std::numeric_limits<int32_t>::max())
      array.near = false;
    if (!array.near) reach = 0;
  }
  if (view.data && a_.arithmetic == Arithmetic::f32 && !fits_32_bits(array, refusal_.number))
    return refuse(Rule::program_value, name);
  return true;
}

}  // namespace gqa
