// products/integer_products.h: products of integers by instructions that not every processor with an instruction set
// has. They are compiled in an object of their own, beside that of the instruction set, and called through a table:
// once for a block of keys, so that calls cost nothing.
//
// Rows of K and V are int8, in the order of their steps, [step][stream]; a stream that has ended has a row of zeros.
// A group has 1, 2 or 4 rows of q: entries 0, 1 and 2 of the table.
#pragma once

#include <stdint.h>

namespace gqa {

struct IntegerProducts {
  // s[step][stream][row] = unit[row] * (k . q), with q[row][channel] of int16, rows `stride` apart.
  using Scores = void (*)(const int16_t* q, int64_t stride, const float* unit, int head_dim, const char* const* rows,
                          int steps, float* s);
  // o += p . v for `count` rows of V, a multiple of 4, with p[step][stream][row], 0 or more. Returns false, and has
  // done nothing, for weights that it does not serve for. o: rows `stride` apart, of whole vectors. scratch: of
  // scratch_bytes.
  using Accumulate = bool (*)(const char* const* rows, int count, int channels, const float* p, float* o,
                              int64_t stride, char* scratch);

  Scores scores[3];
  Accumulate accumulate[3];
  int64_t (*scratch_bytes)(int64_t channels, int keys);
};

constexpr int table_entry(int rows) { return rows > 2 ? 2 : rows - 1; }

}  // namespace gqa
