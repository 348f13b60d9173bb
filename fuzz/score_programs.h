// score_programs.h: score programs from a fuzzer's bytes, with the arrays that they take elements of.
#pragma once

#include <memory>

#include "attention_calls.h"

namespace gqa {

struct ReadProgram {
  std::unique_ptr<ScoreProgram> program;  // null: refused
  std::vector<TensorView> captured;

  // The same program, of which nothing can be told before it is asked for each score.
  std::unique_ptr<ScoreProgram> opaque;
  std::vector<TensorView> opaque_captured;

  void set(Options& options) const { options.program = program.get(), options.captured = captured; }
};

// slope: a derivative is among what it gives.
ReadProgram read_program(Input& input, Tensors& tensors, const CallSizes& sizes, int64_t keys, bool slope);

}  // namespace gqa
