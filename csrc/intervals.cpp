#include "intervals.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace gqa {
namespace {

constexpr double infinite = std::numeric_limits<double>::infinity();
constexpr size_t max_order = 512;  // longer programs are asked score by score

constexpr Range boolean(bool may_be_false, bool may_be_true) { return {!may_be_false, may_be_true, 0, 0, false}; }
constexpr bool may_be_true(const Range& x) { return x.most != 0; }
constexpr bool may_be_false(const Range& x) { return x.least == 0; }

int64_t floor_divide(int64_t x, int64_t y) { return x / y - (x % y != 0 && (x % y < 0) != (y < 0)); }
int64_t ones_above(int64_t x) {  // the least 2^n - 1 that is not below x >= 0
  return x == 0 ? 0 : int64_t(~uint64_t(0) >> __builtin_clzll(uint64_t(x)));
}

}  // namespace

Intervals::Intervals(const Attention& attention)
    : program_(attention.program->program),
      arrays_(attention.program->arrays),
      single_(attention.arithmetic == Arithmetic::f32) {
  const std::vector<Instruction>& instructions = program_->instructions();
  const auto needed_for = [&](int32_t result) {
    std::vector<bool> needed(instructions.size(), false);
    if (result < 0) return needed;
    needed[size_t(result)] = true;
    for (size_t v = size_t(result) + 1; v-- > 0;)
      if (needed[v])
        for (const int32_t operand : instructions[v].operands) needed[size_t(operand)] = true;
    return needed;
  };
  mask_ = program_->result(output_mask);
  std::vector<bool> needed = needed_for(mask_);
  for (size_t v = 0; v < instructions.size(); v++)
    if (needed[v] && instructions[v].operation == Operation::score) return;  // no function of positions alone
  // A score hides by being -infinity: where no such constant is in it, it is not looked at.
  const std::vector<bool> of_score = needed_for(program_->result(output_score));
  for (size_t v = 0; v < instructions.size(); v++)
    if (of_score[v] && instructions[v].operation == Operation::constant_real && instructions[v].real == -infinite)
      score_ = program_->result(output_score);
  if (score_ >= 0)
    for (size_t v = 0; v < instructions.size(); v++) needed[v] = needed[v] || of_score[v];
  for (size_t v = 0; v < instructions.size(); v++)
    if (needed[v]) order_.push_back(int32_t(v));
  if (order_.size() > max_order) order_.clear();

  bounds_.resize(program_->arrays().size());
  for (const int32_t v : order_) {
    const Instruction& instruction = instructions[size_t(v)];
    if (instruction.operation == Operation::h) heads_matter_ = true;
    if (!is_gather(instruction.operation) || bounds_[size_t(instruction.array)].known()) continue;
    bounds_[size_t(instruction.array)] =
        ArrayBounds(arrays_[instruction.array], signature_of(instruction.operation).result);
  }
}

Hidden Intervals::hidden(int64_t b, const Box& box, Range* values) const {
  for (const int32_t v : order_) values[v] = of_instruction(program_->instructions()[size_t(v)], b, box, values);
  const bool mask_hides = mask_ >= 0 && may_be_false(values[mask_]);
  if (mask_hides && !may_be_true(values[mask_])) return Hidden::all;
  const bool score_hides = score_ >= 0 && values[score_].low == -infinite;
  if (score_hides && values[score_].high == -infinite && !values[score_].nan) return Hidden::all;
  return mask_hides || score_hides ? Hidden::some : Hidden::nothing;
}

Range Intervals::any(Kind kind) const {
  switch (kind) {
    case Kind::real: return {0, 0, -infinite, infinite, true};
    case Kind::boolean: return boolean(true, true);
    default:
      return single_ ? Range{std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max(), 0, 0, false}
                     : Range{std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(), 0, 0, false};
  }
}

// Bounds that a lane holds; where it may wrap, any number.
Range Intervals::whole(__int128 least, __int128 most) const {
  const Range all = any(Kind::whole);
  if (least < all.least || most > all.most) return all;
  return {int64_t(least), int64_t(most), 0, 0, false};
}

// Rounding keeps the order of numbers, so that what lies between two numbers lies between them once they are rounded.
// Sums, products, quotients and roots of floats in double, rounded to float, are those in float.
Range Intervals::rounded(double low, double high, bool nan) const {
  if (std::isnan(low) || std::isnan(high)) return any(Kind::real);
  const auto round = [this](double x) {
    const double most = double(std::numeric_limits<float>::max());
    if (!single_ || std::isinf(x)) return x;
    return x > most ? infinite : x < -most ? -infinite : double(float(x));
  };
  // A number just beyond the largest float is rounded to it, or to infinity.
  const double largest = double(std::numeric_limits<float>::max());
  const bool beyond = single_ && (low > largest || high < -largest);
  return beyond ? any(Kind::real) : Range{0, 0, round(low), round(high), nan};
}

Range Intervals::widened(double low, double high, bool nan) const {
  const double relative = single_ ? 0x1p-19 : 0x1p-48, absolute = single_ ? 0x1p-140 : 0x1p-1060;
  if (std::isnan(low) || std::isnan(high)) return any(Kind::real);
  const double below = low - std::abs(low) * relative - absolute, above = high + std::abs(high) * relative + absolute;
  return rounded(std::isnan(below) ? -infinite : below, std::isnan(above) ? infinite : above, nan);
}

Range Intervals::of_instruction(const Instruction& instruction, int64_t b, const Box& box, const Range* values) const {
  const auto position = [&](int64_t least, int64_t most) {
    const Range all = any(Kind::whole);
    return Range{std::clamp(least, all.least, all.most), std::clamp(most, all.least, all.most), 0, 0, false};
  };
  switch (instruction.operation) {
    // Larger ones are not made -infinity by the program; NaN they may be.
    case Operation::score: return {0, 0, -1e30, 1e30, true};
    case Operation::b: return position(b, b);
    case Operation::h: return position(box.first_head, box.last_head);
    case Operation::q_idx: return position(box.first_query, box.last_query);
    case Operation::kv_idx: return position(box.first_key, box.last_key);
    case Operation::constant_real: {
      const double x = single_ ? double(float(instruction.real)) : instruction.real;
      return std::isnan(x) ? Range{0, 0, infinite, -infinite, true} : Range{0, 0, x, x, false};
    }
    case Operation::constant_whole: return position(instruction.whole, instruction.whole);
    case Operation::constant_boolean: return boolean(!instruction.whole, instruction.whole);
    case Operation::gather_real:
    case Operation::gather_whole:
    case Operation::gather_boolean: return of_gather(instruction, values);
    case Operation::where_real:
    case Operation::where_whole:
    case Operation::where_boolean: {
      const Range &condition = values[instruction.operands[0]], &x = values[instruction.operands[1]],
                  &y = values[instruction.operands[2]];
      return !may_be_false(condition) ? x : !may_be_true(condition) ? y : joined(x, y);
    }
    default: break;
  }
  const Range& x = values[instruction.operands[0]];
  if (instruction.operands.size() == 1) return of_unary(instruction.operation, x);
  return of_binary(instruction.operation, x, values[instruction.operands[1]]);
}

Range Intervals::of_gather(const Instruction& instruction, const Range* values) const {
  const Kind kind = signature_of(instruction.operation).result;
  const ArrayBounds& bounds = bounds_[size_t(instruction.array)];
  if (!bounds.known()) return any(kind);
  int64_t first[max_array_axes], last[max_array_axes];
  for (size_t axis = 0; axis < instruction.operands.size(); axis++) {
    const Range& index = values[instruction.operands[axis]];
    const int64_t size = arrays_[instruction.array].sizes[axis];
    first[axis] = index.least, last[axis] = index.most;
    if (instruction.from_end >> axis & 1) {
      if (index.most < 0) first[axis] = std::max(first[axis], -size) + size, last[axis] += size;
      else if (index.least < 0) first[axis] = 0, last[axis] = size - 1;
    }
    first[axis] = std::clamp<int64_t>(first[axis], 0, size - 1);
    last[axis] = std::clamp<int64_t>(last[axis], 0, size - 1);
  }
  const Range range = bounds.of(first, last);
  return kind == Kind::real && single_ ? rounded(range.low, range.high, range.nan) : range;
}

Range Intervals::of_unary(Operation operation, const Range& x) const {
  const auto monotone = [&](double (*f)(double), double low) {  // NaN below `low`
    return widened(f(std::max(x.low, low)), f(std::max(x.high, low)), x.nan || x.low < low);
  };
  switch (operation) {
    case Operation::real_of_whole: return rounded(double(x.least), double(x.most), false);
    case Operation::real_of_boolean: return {0, 0, double(x.least), double(x.most), false};
    case Operation::whole_of_boolean: return x;
    case Operation::whole_of_real: {
      const Range all = any(Kind::whole);
      const auto truncated = [&](double y) {
        return y <= double(all.least) ? all.least : y >= double(all.most) ? all.most : int64_t(y);
      };
      const int64_t least = truncated(x.low), most = truncated(x.high);
      if (x.low > x.high) return {0, 0, 0, 0, false};  // nothing but NaN
      return {x.nan ? std::min<int64_t>(least, 0) : least, x.nan ? std::max<int64_t>(most, 0) : most, 0, 0, false};
    }
    case Operation::boolean_of_real: return boolean(x.low <= 0 && x.high >= 0, x.nan || x.low != 0 || x.high != 0);
    case Operation::boolean_of_whole: return boolean(x.least <= 0 && x.most >= 0, x.least != 0 || x.most != 0);
    case Operation::neg_real: return {0, 0, -x.high, -x.low, x.nan};
    case Operation::abs_real: return {0, 0, std::max({x.low, -x.high, 0.0}), std::max(-x.low, x.high), x.nan};
    case Operation::sign_real:
      return {0, 0, double((x.low > 0) - (x.low < 0)), double((x.high > 0) - (x.high < 0)), x.nan};
    case Operation::floor_real: return {0, 0, std::floor(x.low), std::floor(x.high), x.nan};
    case Operation::exp_real: return monotone([](double y) { return std::exp(y); }, -infinite);
    case Operation::exp2_real: return monotone([](double y) { return std::exp2(y); }, -infinite);
    case Operation::tanh_real: return monotone([](double y) { return std::tanh(y); }, -infinite);
    case Operation::log_real: return monotone([](double y) { return std::log(y); }, 0);
    case Operation::sqrt_real: return monotone([](double y) { return std::sqrt(y); }, 0);
    case Operation::isfinite_real:
      return boolean(x.nan || x.low == -infinite || x.high == infinite, x.low < infinite && x.high > -infinite);
    case Operation::neg_whole: return whole(-__int128(x.most), -__int128(x.least));
    case Operation::abs_whole:
      return whole(std::max({__int128(x.least), -__int128(x.most), __int128(0)}),
                   std::max(-__int128(x.least), __int128(x.most)));
    case Operation::sign_whole: return {(x.least > 0) - (x.least < 0), (x.most > 0) - (x.most < 0), 0, 0, false};
    case Operation::not_whole: return {~x.most, ~x.least, 0, 0, false};
    case Operation::not_boolean: return boolean(may_be_true(x), may_be_false(x));
    default: return any(signature_of(operation).result);  // sin, cos
  }
}

Range Intervals::of_binary(Operation operation, const Range& x, const Range& y) const {
  const bool nan = x.nan || y.nan;
  const bool infinities = std::max({std::abs(x.low), std::abs(x.high), std::abs(y.low), std::abs(y.high)}) == infinite;
  switch (operation) {
    case Operation::add_real: return infinities ? any(Kind::real) : rounded(x.low + y.low, x.high + y.high, nan);
    case Operation::sub_real: return infinities ? any(Kind::real) : rounded(x.low - y.high, x.high - y.low, nan);
    case Operation::mul_real:
    case Operation::div_real: {
      if (infinities || (operation == Operation::div_real && y.low <= 0 && y.high >= 0)) return any(Kind::real);
      const auto f = [&](double a, double c) { return operation == Operation::mul_real ? a * c : a / c; };
      const auto [low, high] = std::minmax({f(x.low, y.low), f(x.low, y.high), f(x.high, y.low), f(x.high, y.high)});
      return rounded(low, high, nan);
    }
    case Operation::min_real: return {0, 0, std::min(x.low, y.low), std::min(x.high, y.high), nan};
    case Operation::max_real: return {0, 0, std::max(x.low, y.low), std::max(x.high, y.high), nan};
    case Operation::lt_real: return boolean(nan || x.high >= y.low, x.low < y.high);
    case Operation::le_real: return boolean(nan || x.high > y.low, x.low <= y.high);
    case Operation::eq_real:
      return boolean(nan || x.low != x.high || y.low != y.high || x.low != y.low, x.low <= y.high && y.low <= x.high);
    case Operation::ne_real:
      return boolean(x.low <= y.high && y.low <= x.high, nan || x.low != x.high || y.low != y.high || x.low != y.low);
    case Operation::lt_whole: return boolean(x.most >= y.least, x.least < y.most);
    case Operation::le_whole: return boolean(x.most > y.least, x.least <= y.most);
    case Operation::eq_whole:
      return boolean(x.least != x.most || y.least != y.most || x.least != y.least,
                     x.least <= y.most && y.least <= x.most);
    case Operation::ne_whole:
      return boolean(x.least <= y.most && y.least <= x.most,
                     x.least != x.most || y.least != y.most || x.least != y.least);
    case Operation::and_boolean: return boolean(may_be_false(x) || may_be_false(y), may_be_true(x) && may_be_true(y));
    case Operation::or_boolean: return boolean(may_be_false(x) && may_be_false(y), may_be_true(x) || may_be_true(y));
    case Operation::xor_boolean: {
      const bool known = x.least == x.most && y.least == y.most;
      return known ? boolean(x.least == y.least, x.least != y.least) : boolean(true, true);
    }
    default:
      // floor division, remainder and power of floats
      return signature_of(operation).result == Kind::whole ? whole_of_binary(operation, x, y) : any(Kind::real);
  }
}

Range Intervals::whole_of_binary(Operation operation, const Range& x, const Range& y) const {
  using Wide = __int128;
  const bool natural = x.least >= 0 && y.least >= 0, single = y.least == y.most;
  switch (operation) {
    case Operation::add_whole: return whole(Wide(x.least) + y.least, Wide(x.most) + y.most);
    case Operation::sub_whole: return whole(Wide(x.least) - y.most, Wide(x.most) - y.least);
    case Operation::mul_whole: {
      const Wide a = Wide(x.least) * y.least, b = Wide(x.least) * y.most, c = Wide(x.most) * y.least,
                 d = Wide(x.most) * y.most;
      return whole(std::min({a, b, c, d}), std::max({a, b, c, d}));
    }
    case Operation::floordiv_whole: {
      if (y.least <= 0) return any(Kind::whole);  // rounding down grows with x, and with y away from 0
      const int64_t a = floor_divide(x.least, y.least), b = floor_divide(x.least, y.most),
                    c = floor_divide(x.most, y.least), d = floor_divide(x.most, y.most);
      return {std::min({a, b, c, d}), std::max({a, b, c, d}), 0, 0, false};
    }
    case Operation::mod_whole: {
      if (y.least <= 0) return any(Kind::whole);
      const int64_t quotient = floor_divide(x.least, y.least);
      if (single && quotient == floor_divide(x.most, y.most))
        return {x.least - quotient * y.least, x.most - quotient * y.least, 0, 0, false};
      return {0, y.most - 1, 0, 0, false};
    }
    case Operation::min_whole: return {std::min(x.least, y.least), std::min(x.most, y.most), 0, 0, false};
    case Operation::max_whole: return {std::max(x.least, y.least), std::max(x.most, y.most), 0, 0, false};
    case Operation::and_whole:
      if (single && y.least >= 0 && y.least < (int64_t(1) << 62) && (y.least & (y.least + 1)) == 0) {  // mod 2^n
        const int64_t quotient = floor_divide(x.least, y.least + 1);
        if (quotient == floor_divide(x.most, y.least + 1))
          return {x.least - quotient * (y.least + 1), x.most - quotient * (y.least + 1), 0, 0, false};
      }
      if (natural) return {0, std::min(x.most, y.most), 0, 0, false};
      return y.least >= 0   ? Range{0, y.most, 0, 0, false}
             : x.least >= 0 ? Range{0, x.most, 0, 0, false}
                            : any(Kind::whole);
    case Operation::or_whole:
      return natural ? Range{std::max(x.least, y.least), ones_above(std::max(x.most, y.most)), 0, 0, false}
                     : any(Kind::whole);
    case Operation::xor_whole:
      return natural ? Range{0, ones_above(std::max(x.most, y.most)), 0, 0, false} : any(Kind::whole);
    case Operation::shl_whole:
      if (!single || y.least < 0 || y.least > 62) return any(Kind::whole);
      return whole(Wide(x.least) << y.least, Wide(x.most) << y.least);
    case Operation::shr_whole: {
      if (!single) return any(Kind::whole);
      const int64_t places = std::clamp<int64_t>(y.least, 0, 63);
      return {x.least >> places, x.most >> places, 0, 0, false};
    }
    default: return any(Kind::whole);
  }
}

}  // namespace gqa
