#include "planner.h"

#include <algorithm>

namespace gqa {

Planned::Planned(Listing program, bool one_head)
    : program_(std::move(program)), rates_(rates_of(program_.instructions, one_head)) {
  const std::vector<Instruction>& instructions = program_.instructions;
  const size_t count = instructions.size();
  at_.assign(count, {Rate::full, 0});

  int all = 0;
  for (int o = 0; o < outputs; o++) {
    plan_.has[o] = program_.results[o] >= 0 && !(o == output_slope && is_one(program_.results[o]));
    all |= plan_.has[o] << o;
  }
  // A value stays where another list, or whoever runs the program, reads it.
  const std::vector<bool> needed = needed_for(all, false);
  find_fused(needed);
  std::vector<bool> stays(count, false);
  for (size_t v = 0; v < count; v++)
    if (needed[v])
      for (const int32_t operand : instructions[v].operands)
        if (rates_[size_t(operand)] != rates_[v]) stays[size_t(operand)] = true;
  for (int o = 0; o < outputs; o++)
    if (plan_.has[o]) stays[size_t(program_.results[o])] = true;

  int32_t* const slots[] = {&plan_.call_slots, &plan_.row_slots, &plan_.key_slots};
  for (const Rate rate : {Rate::call, Rate::row, Rate::key}) {
    Values order;
    for (size_t v = 0; v < count; v++)
      if (needed[v] && rates_[v] == rate) order.push_back(int32_t(v));
    plan_.of_rate[int(rate)] = list(order, rate, stays, false, *slots[int(rate)]);
  }
  for (int goal = 1; goal < 1 << outputs; goal++) {
    if ((goal & all) != goal) continue;
    const std::vector<bool> wanted = needed_for(goal, true);
    Values order;
    for (size_t v = 0; v < count; v++)
      if (wanted[v]) order.push_back(int32_t(v));
    std::vector<bool> kept(count, false);
    for (int o = 0; o < outputs; o++)
      if (goal >> o & 1) kept[size_t(program_.results[o])] = true;
    int32_t registers = 1;  // 0 is the scores
    StepList& full = plan_.full[goal] = list(order, Rate::full, kept, goal & goal_score, registers);
    for (int o = 0; o < outputs; o++)
      if (goal >> o & 1) full.results[o] = at_[size_t(program_.results[o])];
    plan_.registers = std::max(plan_.registers, registers - 1);
  }
}

bool Planned::is_one(int32_t value) const {
  const Instruction& instruction = program_.instructions[size_t(value)];
  return instruction.operation == Operation::constant_real && instruction.real == 1;
}

// The values that the outputs of a goal follow from. full_only: without those of other rates, and what is behind them.
std::vector<bool> Planned::needed_for(int goal, bool full_only) const {
  std::vector<bool> needed(rates_.size(), false);
  for (int o = 0; o < outputs; o++)
    if (goal >> o & 1) needed[size_t(program_.results[o])] = true;
  for (size_t v = needed.size(); v-- > 0;) {
    if (full_only && rates_[v] != Rate::full) needed[v] = false;
    if (needed[v])
      for (const int32_t operand : program_.instructions[v].operands) needed[size_t(operand)] = true;
  }
  return needed;
}

// Computes values of one rate in order. A place is free again after the last use of its value in the list, unless that
// stays; the value computed at that moment may take it, since operations go element by element.
StepList Planned::list(const Values& order, Rate rate, const std::vector<bool>& stays, bool scores_may_go,
                       int32_t& slots) {
  const std::vector<Instruction>& instructions = program_.instructions;
  std::vector<size_t> last_use(instructions.size(), 0);
  for (size_t i = 0; i < order.size(); i++)
    for (const int32_t operand : operands_of(size_t(order[i]))) last_use[size_t(operand)] = i;

  std::vector<Step>& steps = steps_.emplace_back();
  std::vector<int32_t> free;
  for (size_t i = 0; i < order.size(); i++) {
    const size_t v = size_t(order[i]);
    const Instruction& instruction = instructions[v];
    if (instruction.operation == Operation::score) {
      at_[v] = {Rate::full, 0};
      continue;
    }
    if (fused_[v]) continue;
    const Values operands = operands_of(v);
    Step step = step_of(instruction, operands);
    for (const int32_t operand : operands) {
      const size_t o = size_t(operand);
      if (rates_[o] != rate || stays[o] || last_use[o] != i) continue;
      if (instructions[o].operation == Operation::score && !scores_may_go) continue;
      if (std::find(free.begin(), free.end(), at_[o].index) == free.end()) free.push_back(at_[o].index);
    }
    if (free.empty()) {
      at_[v] = {rate, slots++};
    } else {
      at_[v] = {rate, free.back()};
      free.pop_back();
    }
    step.to = at_[v];
    steps.push_back(step);
  }
  StepList result{};
  result.steps = steps.data();
  result.count = int32_t(steps.size());
  return result;
}

// A product of scores that only a sum or a difference of scores takes is computed with it.
void Planned::find_fused(const std::vector<bool>& needed) {
  const std::vector<Instruction>& instructions = program_.instructions;
  std::vector<int> uses(instructions.size(), 0);
  for (int o = 0; o < outputs; o++)
    if (plan_.has[o]) uses[size_t(program_.results[o])]++;
  for (size_t v = 0; v < instructions.size(); v++)
    if (needed[v])
      for (const int32_t operand : instructions[v].operands) uses[size_t(operand)]++;
  fused_.assign(instructions.size(), false);
  for (size_t v = 0; v < instructions.size(); v++) {
    if (!needed[v] || !may_fuse(instructions[v].operation)) continue;
    for (const int32_t operand : instructions[v].operands) {
      const size_t o = size_t(operand);
      if (instructions[o].operation != Operation::mul_real || rates_[o] != Rate::full || uses[o] != 1) continue;
      fused_[o] = true;
      break;
    }
  }
}

bool Planned::may_fuse(Operation operation) {
  return operation == Operation::add_real || operation == Operation::sub_real;
}

// Which operand of a sum or a difference is a product that is computed with it; -1: none.
int Planned::fused_operand(const Instruction& instruction) const {
  if (may_fuse(instruction.operation))
    for (int i = 0; i < 2; i++)
      if (fused_[size_t(instruction.operands[size_t(i)])]) return i;
  return -1;
}

Planned::Values Planned::operands_of(size_t value) const {
  const Instruction& instruction = program_.instructions[value];
  const int i = fused_operand(instruction);
  if (i < 0) return instruction.operands;
  const Values& factors = program_.instructions[size_t(instruction.operands[size_t(i)])].operands;
  return {factors[0], factors[1], instruction.operands[size_t(1 - i)]};
}

Step Planned::step_of(const Instruction& instruction, const Values& operands) {
  std::vector<Slot>& places = operands_.emplace_back();
  for (const int32_t operand : operands) places.push_back(at_[size_t(operand)]);
  Step step{};
  step.operation = instruction.operation;
  if (const int i = fused_operand(instruction); i >= 0)
    step.operation = instruction.operation == Operation::add_real ? Operation::mul_add_real
                     : i == 0                                     ? Operation::mul_sub_real
                                                                  : Operation::neg_mul_add_real;
  step.count = uint8_t(places.size());
  step.from_end = instruction.from_end;
  step.array = instruction.array;
  step.operands = places.data();
  step.real = instruction.real;
  step.whole = instruction.whole;
  if (instruction.operation == Operation::floordiv_whole || instruction.operation == Operation::mod_whole) {
    const Instruction& divisor = program_.instructions[size_t(instruction.operands[1])];
    const int64_t x = divisor.whole;
    step.whole = divisor.operation == Operation::constant_whole && x > 0 && (x & (x - 1)) == 0
                     ? __builtin_ctzll(uint64_t(x))
                     : -1;
  }
  return step;
}

}  // namespace gqa
