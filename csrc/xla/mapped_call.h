// mapped_call.h: a call of attention whose tensors may have axes in front.
#pragma once

#include "mapped_operands.h"

namespace gqa {

class MappedCall : MappedOperands {
 public:
  // options: without tensors. lse may be left out.
  MappedCall(const Options& options, const Buffer (&operands)[operand_count], const Buffer& out, const Buffer& lse)
      : MappedOperands(operands, out), options_(options), lse_(lse) {}

  // Whether the buffers have as many axes as those of a call, in front and otherwise; what Call does not see.
  bool is_well_formed() const;

  // False if a call is refused: refusal() says why, and nothing of that call is written. Throws std::bad_alloc.
  bool run();
  const Refusal& refusal() const { return refusal_; }

 private:
  bool attend(const Entries& entries);

  Options options_;
  const Buffer& lse_;
  Refusal refusal_{};
};

}  // namespace gqa
