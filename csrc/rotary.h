// rotary.h: rotary position embedding. `Rotary` describes one call over plain memory; `rotate` does it.
#pragma once

#include "attention.h"

namespace gqa {

// Rotates the first rotary_dim channels of each row of x by the angles of its token, and copies the others.
struct Rotary {
  const char* x;
  char* out;
  Strides x_strides, out_strides;
  DType type;  // of x and out; channels are contiguous
  int64_t batch, heads, tokens, head_dim, rotary_dim;
  bool interleaved;  // pairs (2c, 2c + 1) rather than (c, c + rotary_dim / 2)

  // A row of rotary_dim / 2 contiguous values for each position; strides in bytes.
  const char *cos, *sin;
  DType cos_type, sin_type;
  int64_t cos_stride, sin_stride;
  const int64_t* positions;  // of token t of batch entry b: positions[b * position_stride + t]
  int64_t position_stride;   // 0 where all batch entries share them
  int64_t first_position;    // of token 0 where positions is null; the others follow

  int threads;
};

void rotate(const Rotary& rotary);

}  // namespace gqa
