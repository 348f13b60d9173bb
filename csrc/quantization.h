// quantization.h: a row of floats as int8: what a kernel does for one row.
#pragma once

#include "attention.h"

namespace gqa {

// scale = max|x| / 127 as float, or the least normal float if that is more; data = round(x / scale), ties to even.
struct RowQuantization {
  const char* from;
  DType from_type;
  int64_t channels;  // side by side
  char *data, *scale;
};

}  // namespace gqa
