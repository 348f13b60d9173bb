// plan.h: how sequences are cut. Integers only, so that it can be read, and tested, without a kernel.
//
// The words, from the largest to the smallest:
//   sequence  a batch entry or packed sequence: its queries, and the keys that they attend
//   row       a query of one query head; the rows of a KV head are those of its group of query heads
//   unit      a block of rows of one sequence and KV head: rows that end in the output together
//   part      keys of a unit that one task attends: a whole subtree of splits
//   task      a unit, or one part of it: what a thread takes at a time
//   split     the keys between two cuts. Cuts are at fixed multiples of absolute key numbers; each split is attended by
//             itself, and their states are merged in the order of a balanced tree (kernels/merge_tree.h)
//   block     keys that a loop takes at once, a fraction of a split, also at fixed multiples
//   chunk     in the backward pass: rows of one sequence and KV head that a thread takes at a time, over all their keys
//   tile      rows that fill the lanes of a register tile
//
// The result must be the same to the last bit for any number of threads and any batch around a sequence, and for any
// storage of its keys. So whatever changes the arithmetic (the loop used, where splits and blocks begin) follows from
// the sequence and absolute key numbers alone. Units, parts and tasks change nothing; they are free to follow from the
// number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gqa {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// From this many rows on, a tile of rows in the lanes does more useful work than channels in the lanes.
constexpr int64_t rows_for_lanes = 24;
constexpr bool rows_in_lanes(int64_t rows) { return rows >= rows_for_lanes; }

// Keys of a split: multiples of the loops' blocks (96, and 256 or 768). Few rows have little to merge and need many
// splits, so that one sequence can feed many threads. Many rows have large states, and are cut at every eighth cut of
// few rows, so that merging takes less than half a percent of their time; they are dealt out themselves. In between,
// rows of a tile or two (speculative steps) are cut at every second one. Pieces of keys that meet at multiples of the
// largest number are whole subtrees for all.
constexpr int64_t few_rows_split_keys = 768, some_rows_split_keys = 2 * few_rows_split_keys,
                  many_rows_split_keys = 8 * few_rows_split_keys;
// From so many rows on the bits of a prompt do not follow from its chunks.
constexpr int64_t many_rows = 64;
constexpr int64_t split_keys(int64_t rows) {
  return !rows_in_lanes(rows) ? few_rows_split_keys : rows < many_rows ? some_rows_split_keys : many_rows_split_keys;
}

// What one sequence amounts to. Keys are the absolute numbers of those that some row attends, [first_key, last_key).
struct Work {
  int64_t rows;  // of one KV head
  int64_t first_key, last_key;
  double attended;         // keys of an average row
  int64_t whole_rows = 0;  // those of the whole sequence, if these are some of them: all take the same loop

  bool in_lanes() const { return rows_in_lanes(std::max(rows, whole_rows)); }
  int64_t split_keys() const { return gqa::split_keys(std::max(rows, whole_rows)); }
  // Splits [first, last) that hold the keys; one without keys, too, is a split.
  int64_t first_split() const { return first_key / split_keys(); }
  int64_t last_split() const { return std::max(first_split() + 1, ceil_div(last_key, split_keys())); }
};

// What all sequences of a call share.
struct Sizes {
  int64_t kv_heads, head_dim, v_head_dim, element_bytes, tile_rows;
};

// Rows of one unit. Its tiles share each block of keys: the more the better, as long as their Q^T and O^T (and the
// block) stay in L2, and as long as there are units enough for the threads.
constexpr int64_t max_rows_per_unit = 1024, unit_bytes = 1 << 22;

inline int64_t rows_per_unit(const Work& work, const Sizes& sizes, int64_t sequences_and_heads, int64_t threads) {
  const int64_t rows = work.rows;
  if (!work.in_lanes()) return rows;
  const int64_t fit = unit_bytes / ((sizes.head_dim + sizes.v_head_dim + 1) * sizes.element_bytes);
  const int64_t wanted = ceil_div(4 * threads, sequences_and_heads);  // units from each sequence and head
  const int64_t most = std::min({max_rows_per_unit, fit, threads > 1 ? ceil_div(rows, wanted) : rows});
  return std::max<int64_t>(1, most / sizes.tile_rows) * sizes.tile_rows;
}

// Rows of a chunk, which is a task of the backward pass: as many as their q, dout (twice each) and dq leave room for in
// L2. What it adds to dk and dv is rounded by itself: so this follows from the sizes of a row alone.
constexpr int64_t max_rows_per_chunk = 1024, chunk_bytes = 8 << 20;

constexpr int64_t rows_per_chunk(const Sizes& sizes) {
  const int64_t row = (3 * sizes.head_dim + 2 * sizes.v_head_dim + 1) * sizes.element_bytes;
  return std::max<int64_t>(1, std::min(max_rows_per_chunk, chunk_bytes / row) / sizes.tile_rows) * sizes.tile_rows;
}

}  // namespace gqa
