// mapped_gradient.h: a call of the backward pass whose tensors may have axes in front.
#pragma once

#include "../gradient_call.h"
#include "mapped_operands.h"

namespace gqa {

// What a backward pass starts from; dlse may be left out.
struct GivenBuffers {
  Buffer dout, out, lse, dlse;
};

// What it writes: of the shape and type of its operand each; those by the mask and by sinks may be left out.
struct GradientBuffers {
  Buffer dq, dk, dv, dmask, dsinks;
};

class MappedGradient : MappedOperands {
 public:
  // options: without tensors.
  MappedGradient(const Options& options, const Buffer (&operands)[operand_count], const GivenBuffers& given,
                 const GradientBuffers& gradients)
      : MappedOperands(operands, gradients.dq), options_(options), given_(given), gradients_(gradients) {}

  // As those of MappedCall.
  bool is_well_formed() const;
  bool run();
  const Refusal& refusal() const { return refusal_; }

 private:
  bool is_like(const Buffer& gradient, const Buffer& operand) const;
  bool is_one_call() const;
  bool differentiate(const Entries& entries);
  TensorView sinks_view(std::vector<char>& unwanted, const Entries& entries) const;

  Options options_;
  const GivenBuffers& given_;
  const GradientBuffers& gradients_;
  Refusal refusal_{};
};

}  // namespace gqa
