// tile_scores.h: a tile of rows and a block of keys: which of the keys the rows attend, and the tile's scores with
// them.
#pragma once

#include "pack.h"
#include "score_block.h"
#include "tile_rows.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Scores of a tile, s[key][lane], with room for whole panels past the block's last key.
constexpr int score_rows = rows_block + tile_height;

// The keys [from, to) of a block that some row of a tile attends, counted from the block's first. `from` is a multiple
// of the tile's height, since panels are whole: keys too many before the range are masked.
struct TileRange {
  int from, to, all_from, all_to;  // every row attends [all_from, all_to), but for what the mask hides
  bool masked;                     // the bias is to be added
  int shown_from, shown_to;        // a program's mask shows [shown_from, shown_to) to every row

  bool skip() const { return from >= to; }
  int keys() const { return to - from; }
  bool edges() const { return from < all_from || to > all_to; }
  bool hides() const { return from < shown_from || to > shown_to; }  // a program's mask may hide some
  bool whole() const { return !masked && !edges() && !hides(); }     // every row attends every key
};

// For the block of `count` keys from `begin` on. The mask goes to `bias`, from the range's first key on. cover: what a
// program's mask leaves of the block.
template <class T>
TileRange tile_range(const HeadRows& head, const LaneRows& rows, int64_t begin, int count, T* bias,
                     KeyCover cover_of_program = all_visible) {
  const BlockRange block =
      block_range(head.a, head.sequence, head.query(rows.first), head.query(rows.last()), begin, count);
  TileRange range{block.from, block.to, block.all_from, block.all_to, false, 0, count};
  if (head.a.program) {
    const CoverRange shown =
        cover_range(cover_of_program, rows_part, within_block(head.sequence, begin, rows_block), count);
    range.from = int(max(range.from, shown.from)), range.to = int(min(range.to, shown.to));
    range.shown_from = shown.whole_from, range.shown_to = shown.whole_to;
  }
  if (range.skip()) return {};
  range.from -= range.from % tile_height;
  if (head.a.mask) {
    const Cover cover = load_mask(head, rows, begin + range.from, range.keys(), bias);
    if (cover == Cover::skip) return {};
    range.masked = cover == Cover::partial;
  }
  return range;
}

// The scores at s, from the range's first key on.
template <int N, class T>
GQA_INLINE ScoreBlock<T, N, TileCoordinates> score_block(const LaneRows& rows, const TileRange& range, int64_t begin,
                                                         T* s, const T* bias) {
  return {s,
          range.keys(),
          tile_lanes<T>,
          {rows.first, rows.last(), range.keys()},
          begin + range.from,
          range.masked ? bias : nullptr,
          range.edges(),
          {range.all_from - range.from, range.all_to - range.from},
          nullptr};
}

// M dot products for each lane: end(i, v, sums) gets those of scalars a(., i) with vector v of rows[channel][lane].
template <int M, int N, class T, class A, class F> GQA_INLINE void keys_tile(A a, const T* rows, int depth, F end) {
  Tile<T, M, N> sum = {};
  multiply(sum, a, rows, depth);
  each<M, N>([&](int i, int v) { end(i, v, sum.at[i][v]); });
}

// The same for the panels (pack.h) of keys [from, to): end(key, v, sums), key counted from `from`, up to whole panels.
template <int N, class T, class F>
GQA_INLINE void multiply_key_panels(const T* panels, const T* rows, int depth, int from, int to, F end) {
  for (int key = from; key < to; key += tile_height) {
    const T* panel = panels + int64_t(key / tile_height) * depth * panel_width<T>;
    keys_tile<tile_height, N>([=](int k, int i) { return panel[k * panel_width<T> + i]; }, rows, depth,
                              [&](int i, int v, Vec<T> sums) { end(key - from + i, v, sums); });
  }
}

// sums[i][lane] = before(v, sums[i][lane]) + sum over n keys of a(key, i) * weights[key][lane], for M channels i.
// started: false: the sums are 0 as yet, and their memory undefined. select: weights of 0 keep out what `a` is there.
template <int M, int N, bool select, class T, class A, class F>
GQA_INLINE void values_tile(A a, const T* weights, int n, T* sums, bool started, F before) {
  constexpr int lanes = tile_lanes<T>, w = width<T>;
  Tile<T, M, N> sum = {};
  if (started) each<M, N>([&](int i, int v) { sum.at[i][v] = before(v, load(sums + i * lanes + v * w)); });
  if (select) multiply_selecting(sum, a, weights, n);
  else multiply(sum, a, weights, n);
  each<M, N>([&](int i, int v) { store(sums + i * lanes + v * w, sum.at[i][v]); });
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
