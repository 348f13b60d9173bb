// gradient_totals.h: the sums of one task and block of keys on their way into dk and dv.
#pragma once

#include "gradient_tile.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Adds `channels` channels of x, times scale, to a row of totals. The first of the tasks that meet there finds the
// totals undefined; the last rounds them to the result, which may be the same memory.
template <class T, class S>
GQA_INLINE void add_row_to_total(T* total, S* result, const T* x, int channels, T scale, Turn turn) {
  constexpr int w = width<T>, lanes = tile_lanes<T>;
  for (int c = 0; c < channels; c += w) {
    Vec<T> sum = load(x + c / lanes * score_rows * lanes + c % lanes) * scale;
    if (!turn.first) sum += load_row<T, T>(total + c, channels - c);
    if (turn.last) store_channels<S, T>(reinterpret_cast<char*>(result + c), sizeof(S), sum, channels - c);
    else store_channels<T, T>(reinterpret_cast<char*>(total + c), sizeof(T), sum, channels - c);
  }
}

// The same for `count` keys from `key` on; their sums lie as in GradientBlock.
template <class T>
void add_to_totals(const GradientTask& task, const RowTensor& totals, const RowTensor& result, int64_t key, int count,
                   const T* sums, int channels, T scale, Turn turn) {
  const Run& run = task.sequence->runs[0];
  const auto row = [&](const RowTensor& x, int j) {
    return x.data + run.batch * x.strides.batch + task.kv_head * x.strides.head +
           (run.token + key + j) * x.strides.token;
  };
  with_float_type(result.type, [&](auto s) {
    using S = decltype(s);
    for (int j = 0; j < count; j++)
      add_row_to_total(reinterpret_cast<T*>(row(totals, j)), reinterpret_cast<S*>(row(result, j)),
                       sums + j * tile_lanes<T>, channels, scale, turn);
  });
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
