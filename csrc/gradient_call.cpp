#include "gradient_call.h"

#include <algorithm>

#include "dispatch.h"

namespace gqa {
namespace {

// `count` numbers to another type, rounded once.
void convert(const char* from, DType from_type, char* to, DType to_type, int64_t count) {
  const WeightedRow row{from, bytes_of(from_type), from_type, 1.0};
  active_kernels().add_weighted({&row, 1, count, 1.0, to, bytes_of(to_type), to_type});
}

int64_t elements_of(const TensorView& x) {
  int64_t count = 1;
  for (int axis = 0; axis < x.axes; axis++) count *= x.shape[axis];
  return count;
}

}  // namespace

bool GradientCall::set_given(const Given& given, bool mask_grad) {
  if (!check_shape(given.dout, "dout", out_shape()) || !check_shape(given.out, "out", out_shape()) ||
      !check_shape(given.lse, "lse", lse_shape()))
    return false;
  if (given.dlse.given() && !check_shape(given.dlse, "dlse", lse_shape())) return false;
  if (given.lse.type != lse_type()) {
    refusal_.type = given.lse.type, refusal_.expected_type = lse_type();
    return refuse(Rule::dtype_as, "lse", "the forward call returns it");
  }
  given_ = &given;
  mask_grad_ = mask_grad && options_.mask.given();
  if (mask_grad_ && options_.mask.type == DType::boolean) return refuse(Rule::mask_grad, "mask");
  return true;
}

void GradientCall::run(const TensorView& dq, const TensorView& dk, const TensorView& dv, const TensorView& dmask,
                       const TensorView& dsinks) {
  use_inputs();
  Gradients g{};
  g.attention = &a_;
  g.dout = rows_with_channels(given_->dout), g.out = rows_with_channels(given_->out);
  g.lse = rows(given_->lse);
  if (given_->dlse.given()) g.dlse = rows(given_->dlse);
  g.dq = rows_with_channels(dq), g.dk = rows_with_channels(dk), g.dv = rows_with_channels(dv);
  g.key_batches = store_shapes_[0].batch, g.key_tokens = store_shapes_[0].tokens;

  std::unique_ptr<char[]> mask_sums;
  if (mask_grad_) use_mask(g, dmask, mask_sums);
  std::vector<double> sinks(has_dsinks() ? size_t(a_.query_heads) : 0);
  if (has_dsinks()) g.dsinks = sinks.data();
  differentiate(g);
  if (mask_sums) convert(mask_sums.get(), lse_type(), dmask.data, dmask.type, elements_of(dmask));
  if (has_dsinks())
    convert(reinterpret_cast<const char*>(sinks.data()), DType::f64, dsinks.data, dsinks.type, a_.query_heads);
}

RowTensor GradientCall::rows(const TensorView& x) const { return {x.data, rows_of(x), x.type}; }

RowTensor GradientCall::rows_with_channels(const TensorView& x) {
  const char* data;
  RowTensor tensor{};
  use_contiguous(x, data, tensor.strides);
  tensor.data = const_cast<char*>(data);
  tensor.type = x.type;
  return tensor;
}

// Sums are kept in dmask itself, or, where it is not of the compute type, in memory of their own.
void GradientCall::use_mask(Gradients& g, const TensorView& dmask, std::unique_ptr<char[]>& sums) {
  const int64_t element = bytes_of(lse_type());
  g.dmask_elements = elements_of(dmask);
  if (dmask.type != lse_type()) sums.reset(new char[size_t(g.dmask_elements * element)]);
  g.dmask = sums ? sums.get() : dmask.data;
  int64_t* const strides[] = {&g.dmask_strides.batch, &g.dmask_strides.head, &g.dmask_strides.token,
                              &g.dmask_key_stride};
  int64_t stride = element;
  for (int axis = dmask.axes - 1, i = 3; axis >= 0; axis--, i--) {
    if (dmask.shape[axis] > 1) *strides[i] = stride;
    stride *= dmask.shape[axis];
  }
}

}  // namespace gqa
