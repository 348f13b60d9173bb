// rotary.h: rotary position embedding. `Rotary` describes one call over plain memory; `rotate` does it.
#pragma once

#include "attention.h"

namespace gqa {

// Rotates the first rotary_dim channels of each row of x by the angles of its token, and copies the others.
struct Rotary {
  const char* x;
  char* out;
  Strides x_strides, out_strides;
  DType type;                  // of x and out; channels are contiguous
  const void *cos, *sin;       // [batch][tokens][rotary_dim / 2], double for f64 and float for the other types
  int64_t table_batch_stride;  // in elements; 0 where all batch entries share the tables
  int64_t batch, heads, tokens, head_dim, rotary_dim;
  bool interleaved;  // pairs (2c, 2c + 1) rather than (c, c + rotary_dim / 2)
};

void rotate(const Rotary& rotary);

}  // namespace gqa
