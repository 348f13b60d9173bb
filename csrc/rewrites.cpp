#include "rewrites.h"

#include <algorithm>
#include <limits>
#include <map>
#include <tuple>

namespace gqa {
namespace {

constexpr int64_t exact_numbers = int64_t(1) << 24;  // float holds all whole numbers up to it
constexpr int64_t any_number = std::numeric_limits<int64_t>::max();

int64_t product(int64_t x, int64_t y) {
  int64_t z;
  return x == any_number || y == any_number || __builtin_mul_overflow(x, y, &z) ? any_number : z;
}
int64_t sum(int64_t x, int64_t y) {
  int64_t z;
  return x == any_number || y == any_number || __builtin_add_overflow(x, y, &z) ? any_number : z;
}

// The largest absolute value that an instruction may give, of those of all before it.
int64_t bound_of(const Instruction& instruction, const std::vector<int64_t>& bounds) {
  const auto bound = [&](size_t i) { return bounds[size_t(instruction.operands[i])]; };
  switch (instruction.operation) {
    case Operation::b:
    case Operation::h:
    case Operation::q_idx:
    case Operation::kv_idx: return small_numbers;
    case Operation::constant_whole:
      return instruction.whole == std::numeric_limits<int64_t>::min() ? any_number : std::abs(instruction.whole);
    case Operation::whole_of_boolean: return 1;
    case Operation::neg_whole:
    case Operation::abs_whole: return bound(0);
    case Operation::sign_whole: return 1;
    case Operation::add_whole:
    case Operation::sub_whole: return sum(bound(0), bound(1));
    case Operation::mul_whole: return product(bound(0), bound(1));
    case Operation::min_whole:
    case Operation::max_whole: return std::max(bound(0), bound(1));
    case Operation::floordiv_whole: return sum(bound(0), 1);
    case Operation::mod_whole: return bound(1);
    case Operation::where_whole: return std::max(bound(1), bound(2));
    default: return any_number;
  }
}

class FloatsEarly {
 public:
  FloatsEarly(const ScoreProgram& program, bool one_head)
      : old_(program.instructions()), rates_(rates_of(old_, one_head)) {
    for (const Instruction& instruction : old_) bounds_.push_back(bound_of(instruction, bounds_));
    for (size_t v = 0; v < old_.size(); v++) {
      const Instruction& instruction = old_[v];
      const bool converts = instruction.operation == Operation::real_of_whole && rates_[v] == Rate::full;
      const size_t whole = converts ? size_t(instruction.operands[0]) : 0;
      if (converts && moves(whole)) {
        now_.push_back(real_of(whole));
        continue;
      }
      Instruction copy = instruction;
      for (int32_t& operand : copy.operands) operand = now_[size_t(operand)];
      new_.instructions.push_back(std::move(copy));
      now_.push_back(int32_t(new_.instructions.size()) - 1);
    }
    for (int o = 0; o < outputs; o++) {
      const int32_t result = program.result(Output(o));
      new_.results[o] = result < 0 ? -1 : now_[size_t(result)];
    }
  }

  Listing result() { return std::move(new_); }

 private:
  // The operation on floats that gives what one on whole numbers gives; that itself if there is none.
  static Operation of_reals(Operation operation) {
    switch (operation) {
      case Operation::add_whole: return Operation::add_real;
      case Operation::sub_whole: return Operation::sub_real;
      case Operation::abs_whole: return Operation::abs_real;
      case Operation::min_whole: return Operation::min_real;
      case Operation::max_whole: return Operation::max_real;
      default: return operation;
    }
  }

  // Whether the conversion of a value can be done before the operation that gives it, as cheaply for each score: down
  // to values that are not computed for each.
  bool moves(size_t v) const {
    const Instruction& instruction = old_[v];
    if (bounds_[v] > exact_numbers) return false;
    if (rates_[v] != Rate::full) return true;
    if (of_reals(instruction.operation) == instruction.operation) return false;
    return std::all_of(instruction.operands.begin(), instruction.operands.end(),
                       [&](int32_t operand) { return moves(size_t(operand)); });
  }

  int32_t real_of(size_t v) {
    if (rates_[v] != Rate::full) return put(Operation::real_of_whole, {now_[v]});
    std::vector<int32_t> operands;
    for (const int32_t operand : old_[v].operands) operands.push_back(real_of(size_t(operand)));
    return put(of_reals(old_[v].operation), std::move(operands));
  }

  int32_t put(Operation operation, std::vector<int32_t> operands) {
    const auto [found, is_new] =
        made_.try_emplace(std::make_tuple(operation, operands), int32_t(new_.instructions.size()));
    if (is_new) {
      Instruction& instruction = new_.instructions.emplace_back();
      instruction.operation = operation;
      instruction.operands = std::move(operands);
    }
    return found->second;
  }

  const std::vector<Instruction>& old_;
  const std::vector<Rate> rates_;
  std::vector<int64_t> bounds_;
  std::vector<int32_t> now_;  // of each old value its number among the new ones
  std::map<std::tuple<Operation, std::vector<int32_t>>, int32_t> made_;
  Listing new_;
};

}  // namespace

std::vector<Rate> rates_of(const std::vector<Instruction>& instructions, bool one_head) {
  std::vector<Rate> rates;
  for (const Instruction& instruction : instructions) {
    Rate rate = Rate::call;
    switch (instruction.operation) {
      case Operation::score: rate = Rate::full; break;
      case Operation::h: rate = one_head ? Rate::call : Rate::row; break;
      case Operation::q_idx: rate = Rate::row; break;
      case Operation::kv_idx: rate = Rate::key; break;
      default:
        for (const int32_t operand : instruction.operands) {
          const Rate other = rates[size_t(operand)];
          if (rate == Rate::call) rate = other;
          else if (other != Rate::call && other != rate) rate = Rate::full;
        }
    }
    rates.push_back(rate);
  }
  return rates;
}

Listing with_floats_early(const ScoreProgram& program, bool one_head) {
  return FloatsEarly(program, one_head).result();
}

}  // namespace gqa
