// planner.h: which list computes a value, and where it lies.
#pragma once

#include <deque>

#include "rewrites.h"

namespace gqa {

// The plan of a program, with the memory that it points to.
class Planned {
 public:
  Planned(Listing program, bool one_head);

  const ProgramPlan& plan() const { return plan_; }

 private:
  using Values = std::vector<int32_t>;

  bool is_one(int32_t value) const;
  std::vector<bool> needed_for(int goal, bool full_only) const;
  StepList list(const Values& order, Rate rate, const std::vector<bool>& stays, bool scores_may_go, int32_t& slots);
  Step step_of(const Instruction& instruction, const Values& operands);
  Values operands_of(size_t value) const;
  void find_fused(const std::vector<bool>& needed);
  static bool may_fuse(Operation operation);
  int fused_operand(const Instruction& instruction) const;

  const Listing program_;
  const std::vector<Rate> rates_;
  std::vector<bool> fused_;  // products that the one sum or difference which takes them computes as well
  std::vector<Slot> at_;     // of each value: for values of full rate, in the list that was planned last
  std::deque<std::vector<Step>> steps_;
  std::deque<std::vector<Slot>> operands_;
  ProgramPlan plan_{};
};

}  // namespace gqa
