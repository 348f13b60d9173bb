// array_bounds.h: what the elements of a captured array lie between, wherever in it: so that a mask made of document
// numbers, lengths or tables of blocks can be judged for many keys at once.
//
// Of every piece of the last axis, and of pairs of pieces, pairs of those and so on, the least and the largest element
// are kept. Elements at the ends of a range are looked at one by one, unless pieces are long: then the range is widened
// to whole ones. Either way a smaller range never has wider bounds than a larger one.
#pragma once

#include <vector>

#include "program_plan.h"

namespace gqa {

// Every value that an operation may give. Whole numbers and bools (0 and 1) are within [least, most], floats within
// [low, high], or NaN.
struct Range {
  int64_t least, most;
  double low, high;
  bool nan;
};

class ArrayBounds {
 public:
  // Larger arrays are not looked at: nothing but the kind is known of their elements.
  static constexpr int64_t max_elements = 1 << 20;

  ArrayBounds() = default;
  ArrayBounds(const CapturedArray& array, Kind kind);

  bool known() const { return !levels_.empty(); }

  // Of the elements whose index on each axis is within [first[axis], last[axis]], which are in the array.
  Range of(const int64_t* first, const int64_t* last) const;

 private:
  static constexpr int64_t smallest_piece = 8, longest_exact_piece = 32, max_pieces = 4096;
  static constexpr int64_t max_rows = 64;  // taken one by one; all of them together beyond that

  Range of_row(int64_t row, int64_t first, int64_t last) const;

  const char* row_data(int64_t row) const;

  CapturedArray array_{};
  Kind kind_ = Kind::real;
  int64_t piece_ = smallest_piece;  // elements
  int64_t rows_ = 0;                // rows: indices on the axes before the last; one more is all of them
  struct Level {
    int64_t pieces;
    std::vector<Range> ranges;  // [row][piece]
  };
  std::vector<Level> levels_;
};

Range joined(const Range& x, const Range& y);

}  // namespace gqa
