// intervals.h: a score program on intervals: what it may do to any of the scores of some rows with some keys.
//
// Every value is bounded from the bounds of its operands, so that smaller ranges never give wider bounds: what holds
// for all keys of a range is found for each of its parts as well. Arithmetic of floats is rounded as the kernels
// round it; functions are widened by more than they may be off.
#pragma once

#include "array_bounds.h"
#include "program.h"

namespace gqa {

// Ends are inclusive.
struct Box {
  int64_t first_head, last_head, first_query, last_query, first_key, last_key;  // positions, absolute keys
};

// How much of a box a program hides: all of it, nothing, or something that it must be asked for score by score.
enum class Hidden { all, nothing, some };

class Intervals {
 public:
  explicit Intervals(const Attention& attention);

  // Whether anything is hidden at all, as far as it can be seen without looking at ranges.
  bool worthwhile() const { return !order_.empty(); }
  bool heads_matter() const { return heads_matter_; }
  bool has_mask() const { return mask_ >= 0; }

  // b: the number of the batch entry. values: scratch memory, as many as values().
  Hidden hidden(int64_t b, const Box& box, Range* values) const;
  size_t values() const { return program_->instructions().size(); }

 private:
  Range of_instruction(const Instruction& instruction, int64_t b, const Box& box, const Range* values) const;
  Range of_gather(const Instruction& instruction, const Range* values) const;
  Range of_unary(Operation operation, const Range& x) const;
  Range of_binary(Operation operation, const Range& x, const Range& y) const;
  Range whole_of_binary(Operation operation, const Range& x, const Range& y) const;
  Range rounded(double low, double high, bool nan) const;  // as the kernels round
  Range widened(double low, double high, bool nan) const;  // by more than they may be off
  Range whole(__int128 least, __int128 most) const;
  Range any(Kind kind) const;

  const ScoreProgram* program_;
  const CapturedArray* arrays_;
  std::vector<int32_t> order_;  // values that the outputs follow from
  std::vector<ArrayBounds> bounds_;
  int32_t mask_ = -1, score_ = -1;
  bool heads_matter_ = false;
  bool single_;  // float32, and whole numbers of 32 bits
};

}  // namespace gqa
