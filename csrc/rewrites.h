// rewrites.h: other ways to compute the values of a score program: to the same bits, with fewer operations a score.
#pragma once

#include "program.h"

namespace gqa {

// Instructions as a program has them, and of each output the number of its value, or -1.
struct Listing {
  std::vector<Instruction> instructions;
  int32_t results[outputs];
};

// How often the values of instructions change, in order. one_head: every KV head has a single query head.
std::vector<Rate> rates_of(const std::vector<Instruction>& instructions, bool one_head);

// Positions, heads and entries below this are small: whole numbers made of them are exact as floats, too.
constexpr int64_t small_numbers = int64_t(1) << 22;

// The program of a call in which q_idx, kv_idx, h and b are small, either sign. What differs:
//   float(x - y), of a row's x and a key's y, becomes float(x) - float(y), of which the conversions are no longer done
//   for each score; in the same way sums, absolute values, smaller and larger of two. These are exact where the whole
//   numbers are below 2^24, which their instructions tell.
Listing with_floats_early(const ScoreProgram& program, bool one_head);

}  // namespace gqa
