#include "array_bounds.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "elements.h"

namespace gqa {
namespace {

constexpr double infinite = std::numeric_limits<double>::infinity();
constexpr Range nothing{std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min(), infinite, -infinite,
                        false};

int64_t whole_element(const char* p, DType type) {
  switch (type) {
    case DType::i8: return element<int8_t>(p);
    case DType::i16: return element<int16_t>(p);
    case DType::i32: return element<int32_t>(p);
    case DType::u8: return element<uint8_t>(p);
    case DType::u16: return element<uint16_t>(p);
    case DType::u32: return element<uint32_t>(p);
    default: return element<int64_t>(p);
  }
}

Range range_of_element(const char* p, DType type, Kind kind) {
  Range range = nothing;
  if (kind == Kind::real) {
    const double x = element_as_double(p, type);
    if (std::isnan(x)) range.nan = true;
    else range.low = range.high = x;
  } else {
    range.least = range.most = kind == Kind::whole ? whole_element(p, type) : element<uint8_t>(p) != 0;
  }
  return range;
}

}  // namespace

Range joined(const Range& x, const Range& y) {
  return {std::min(x.least, y.least), std::max(x.most, y.most), std::min(x.low, y.low), std::max(x.high, y.high),
          x.nan || y.nan};
}

ArrayBounds::ArrayBounds(const CapturedArray& array, Kind kind) : array_(array), kind_(kind), rows_(1) {
  int64_t elements = 1;
  for (int axis = 0; axis < array_.axes; axis++)
    if (__builtin_mul_overflow(elements, array_.sizes[axis], &elements) || elements > max_elements) return;
  const int64_t size = array_.sizes[array_.axes - 1];
  rows_ = elements / size;
  while (elements > max_pieces * piece_) piece_ *= 2;

  Level& first = levels_.emplace_back();
  first.pieces = (size + piece_ - 1) / piece_;
  first.ranges.assign(size_t((rows_ + 1) * first.pieces), nothing);
  for (int64_t row = 0; row < rows_; row++) {
    const char* const p = row_data(row);
    for (int64_t i = 0; i < size; i++) {
      Range& range = first.ranges[size_t(row * first.pieces + i / piece_)];
      range = joined(range, range_of_element(p + i * array.strides[array_.axes - 1], array.type, kind));
    }
    for (int64_t i = 0; i < first.pieces; i++) {
      Range& all = first.ranges[size_t(rows_ * first.pieces + i)];
      all = joined(all, first.ranges[size_t(row * first.pieces + i)]);
    }
  }
  while (levels_.back().pieces > 1) {
    Level next;
    const Level& below = levels_.back();
    next.pieces = (below.pieces + 1) / 2;
    next.ranges.assign(size_t((rows_ + 1) * next.pieces), nothing);
    for (int64_t row = 0; row <= rows_; row++)
      for (int64_t i = 0; i < below.pieces; i++) {
        Range& range = next.ranges[size_t(row * next.pieces + i / 2)];
        range = joined(range, below.ranges[size_t(row * below.pieces + i)]);
      }
    levels_.push_back(std::move(next));
  }
}

Range ArrayBounds::of(const int64_t* first, const int64_t* last) const {
  int64_t rows = 1;
  for (int axis = 0; axis < array_.axes - 1 && rows <= max_rows; axis++) rows *= last[axis] - first[axis] + 1;
  const int64_t from = first[array_.axes - 1], to = last[array_.axes - 1];
  if (rows > max_rows) return of_row(rows_, from, to);
  Range range = nothing;
  int64_t index[max_array_axes];
  std::copy_n(first, array_.axes, index);
  for (int64_t n = 0; n < rows; n++) {
    int64_t row = 0;
    for (int axis = 0; axis < array_.axes - 1; axis++) row = row * array_.sizes[axis] + index[axis];
    range = joined(range, of_row(row, from, to));
    for (int axis = array_.axes - 2; axis >= 0; axis--) {
      if (++index[axis] <= last[axis]) break;
      index[axis] = first[axis];
    }
  }
  return range;
}

const char* ArrayBounds::row_data(int64_t row) const {
  const char* p = array_.data;
  for (int64_t axis = array_.axes - 2; axis >= 0; row /= array_.sizes[axis--])
    p += row % array_.sizes[axis] * array_.strides[axis];
  return p;
}

// Whole pieces, those at both ends that have no neighbour in the range to be a pair with, level by level.
Range ArrayBounds::of_row(int64_t row, int64_t first, int64_t last) const {
  Range range = nothing;
  if (piece_ <= longest_exact_piece && row < rows_) {
    const char* const p = row_data(row);
    const auto add = [&](int64_t i) {
      range = joined(range, range_of_element(p + i * array_.strides[array_.axes - 1], array_.type, kind_));
    };
    while (first <= last && first % piece_ != 0) add(first++);
    while (first <= last && last % piece_ != piece_ - 1) add(last--);
    if (first > last) return range;
  }
  first /= piece_, last /= piece_;
  for (const Level& level : levels_) {
    const Range* const ranges = level.ranges.data() + row * level.pieces;
    if (first % 2 == 1) range = joined(range, ranges[first++]);
    if (first > last) break;
    if (last % 2 == 0) range = joined(range, ranges[last--]);
    if (first > last) break;
    first /= 2, last /= 2;
  }
  return range;
}

}  // namespace gqa
