// gradients.h: the C++ API of the backward pass. `Gradients` describes one call over plain memory; `differentiate` does
// it.
#pragma once

#include "attention.h"

namespace gqa {

// Rows of a tensor with axes as q's or k's have them; their channels, if there are any, are contiguous.
struct RowTensor {
  char* data;  // may be null where a tensor may be left out
  Strides strides;
  DType type;
};

// The gradients of sum(dout * out) + sum(dlse * lse) by the arguments of a call.
//
// The forward call is as in attention.h, with one store and at most one run of keys in each sequence, none of which has
// a key in common with another's. Its out and lse are not used: what it gave is in `out` and `lse`.
struct Gradients {
  const Attention* attention;

  RowTensor dout, out;  // read only; of any float types
  RowTensor lse, dlse;  // read only; lse in the compute type; dlse may be left out

  // Written as a whole: 0 where nothing is attended. dk and dv have so many batch entries and tokens.
  RowTensor dq, dk, dv;
  int64_t key_batches, key_tokens;

  // Sums over the axes that the mask is broadcast over, in the compute type, one element after another in memory; the
  // strides are 0 where the mask has one element for all. May be null.
  char* dmask;
  int64_t dmask_elements;
  Strides dmask_strides;  // token: query
  int64_t dmask_key_stride;

  double* dsinks;  // of each query head; may be null
};

// Throws std::bad_alloc before anything is written when the scratch memory cannot be had.
void differentiate(const Gradients& gradients);

}  // namespace gqa
