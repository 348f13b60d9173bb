// options.h: what a caller may say about any attention call, whichever way its tensors come.
#pragma once

#include <vector>

#include "program.h"
#include "tensor.h"

namespace gqa {

// A new option is a field here, and a row of the table in python/options.cpp.
struct Options {
  Layout layout = bhsd;
  bool causal = false;
  int64_t left = unbounded, right = unbounded;  // the window
  double scale = 0;
  bool default_scale = true;
  double softcap = 0;
  bool return_lse = false;
  DType out_type = DType::none;  // none: that of q
  int threads = 1;
  const ScoreProgram* program = nullptr;
  std::vector<TensorView> captured;  // the arrays of the program
  TensorView mask, sinks, out;
};

}  // namespace gqa
