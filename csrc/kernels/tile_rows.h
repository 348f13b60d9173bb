// tile_rows.h: rows in the lanes of a tile: which row of which query head each lane has, and how rows of q, of masks
// and of other tensors get there, transposed.
#pragma once

#include "output.h"
#include "tile.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// The rows of one sequence and KV head.
struct HeadRows {
  const Attention& a;
  const Sequence& sequence;
  int64_t group, first_head;

  HeadRows(const Attention& attention, const Sequence& s, int64_t kv_head)
      : a(attention),
        sequence(s),
        group(attention.query_heads / attention.kv_heads),
        first_head(kv_head * (attention.query_heads / attention.kv_heads)) {}

  int64_t head(int64_t row) const { return first_head + row % group; }
  int64_t query(int64_t row) const { return row / group; }
  template <class P> P at(P base, const Strides& strides, int64_t row) const {
    return at_row(base, strides, sequence, head(row), query(row));
  }
};

// Rows [first, first + count), one in each lane; lanes past the last repeat it.
struct LaneRows {
  int64_t first;
  int count;

  int64_t last() const { return first + count - 1; }
  int64_t row(int lane) const { return first + min(lane, count - 1); }
};

// Rows of S, one for each lane of `vectors`, times scale, to to[channel][lane].
template <class T, class S> void transpose_rows(const char* const* rows, int vectors, int channels, T scale, T* to) {
  constexpr int w = width<T>, lanes = tile_lanes<T>;
  for (int r = 0; r < vectors * w; r += w) {
    const S* from[w];
    for (int i = 0; i < w; i++) from[i] = reinterpret_cast<const S*>(rows[r + i]);
    int d = 0;
    for (; d + w <= channels; d += w) {
      Vec<T> square[w];
#pragma GCC unroll 16
      for (int i = 0; i < w; i++) square[i] = load_as<T, S>(from[i] + d) * scale;
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < w; i++) store(to + (d + i) * lanes + r, square[i]);
    }
    for (; d < channels; d++)
      for (int i = 0; i < w; i++) to[d * lanes + r + i] = convert<T>(read<S>(from[i] + d)) * scale;
  }
}

// The mask of n keys from `key` on as a bias that lies as the scores do, bias[key][lane].
template <class T> Cover load_mask(const HeadRows& head, const LaneRows& rows, int64_t key, int n, T* bias) {
  constexpr int w = width<T>, lanes = tile_lanes<T>;
  T masks[w * (rows_block + w)];
  MaskCover cover;
  for (int r = 0; r < rows.count; r += w) {
    for (int i = 0; i < w; i++) {
      const int64_t row = rows.row(r + i);
      cover.add(mask_row(head.a, head.sequence, head.head(row), head.query(row), key, n, masks + i * (rows_block + w)));
    }
    for (int j = 0; j < n; j += w) {
      Vec<T> square[w];
#pragma GCC unroll 16
      for (int i = 0; i < w; i++) square[i] = load(masks + i * (rows_block + w) + j);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < w; i++) store(bias + (j + i) * lanes + r, square[i]);
    }
  }
  return cover.cover();
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
