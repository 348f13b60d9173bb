// gradient_call.h: a call of the backward pass: the forward call and what it gave, checked against each other.
#pragma once

#include "call.h"
#include "gradients.h"

namespace gqa {

class GradientCall : public Call {
 public:
  // What a backward pass starts from; dlse may be left out.
  struct Given {
    TensorView dout, out, lse, dlse;
  };

  using Call::Call;

  // After the options, of a call without a past: false if what it takes is refused. mask_grad: dmask is wanted.
  bool set_given(const Given& given, bool mask_grad);

  // Whether there is such a gradient.
  bool has_dmask() const { return mask_grad_; }
  bool has_dsinks() const { return options_.sinks.given(); }

  // Computes, after the sequences: each gradient has the shape and the type of its argument, contiguous channels, and
  // memory of its own; dmask is in C order. Throws std::bad_alloc before anything is written.
  void run(const TensorView& dq, const TensorView& dk, const TensorView& dv, const TensorView& dmask,
           const TensorView& dsinks);

 private:
  RowTensor rows(const TensorView& x) const;
  RowTensor rows_with_channels(const TensorView& x);
  void use_mask(Gradients& g, const TensorView& dmask, std::unique_ptr<char[]>& sums);

  const Given* given_ = nullptr;
  bool mask_grad_ = false;
};

}  // namespace gqa
