// plan.h: how a call is cut into tasks. Integers only, so that it can be read, and tested, without a kernel.
//
// The result must be the same to the last bit for any number of threads and any batch around a sequence. So whatever
// changes the arithmetic (the loop used, where splits fall) follows from the sequence alone; the number of threads only
// decides how tiles and splits are dealt out.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gqa {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What one sequence and KV head amounts to.
struct Work {
  int64_t rows, keys, head_dim, v_head_dim, element_bytes, tile_rows;
};

// From this many rows on, a tile of rows in the lanes does more useful work than channels in the lanes.
constexpr int64_t rows_for_lanes = 24;

constexpr bool rows_in_lanes(const Work& w) { return w.rows >= rows_for_lanes; }

// Long caches are cut at fixed keys, a multiple of the loops' blocks (96, 256 and 768), so that one sequence can feed
// many threads; at most 64 times, so that the stored states stay small. Many rows feed the threads by themselves.
constexpr int64_t split_unit = 768, most_splits = 64, most_rows_split = 64;

constexpr int64_t split_keys(const Work& w) {
  if (w.rows > most_rows_split) return std::max<int64_t>(w.keys, 1);
  return split_unit * std::max<int64_t>(1, ceil_div(w.keys, split_unit * most_splits));
}

// Rows of one task. Its tiles share each block of keys: the more the better, as long as their Q^T and O^T (and the
// block) stay in L2, and as long as there are tasks enough for the threads.
constexpr int64_t most_rows_per_task = 1024, task_bytes = 1 << 22;

constexpr int64_t rows_per_task(const Work& w, int64_t sequences_and_heads, int64_t threads) {
  if (!rows_in_lanes(w)) return w.rows;
  const int64_t fit = task_bytes / ((w.head_dim + w.v_head_dim + 1) * w.element_bytes);
  const int64_t wanted = ceil_div(4 * threads, sequences_and_heads);  // tasks from each sequence and head
  const int64_t rows = std::min({most_rows_per_task, fit, threads > 1 ? ceil_div(w.rows, wanted) : w.rows});
  return std::max<int64_t>(1, rows / w.tile_rows) * w.tile_rows;
}

}  // namespace gqa
