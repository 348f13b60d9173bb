// row_tile.h: one tile of rows in the lanes, and what a block of keys adds to it.
//
// Everything is kept transposed: S^T[key][row] = K . Q^T and O^T[channel][row] += V^T . P^T, so that the softmax is
// lane-wise and K and V are read as broadcast scalars.
#pragma once

#include "output.h"
#include "pack.h"
#include "score_block.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// A block of keys: row addresses, and panels once it was packed.
template <class T> struct PanelBlock {
  KeyBlock keys;
  int64_t begin;  // index of its first key
  T *k, *v;
  bool k_packed, v_packed;
  bool finite_known, finite;  // finite: every value is
};

// tile_lanes rows of Q, and their states.
template <class T> struct RowTile {
  T* q;                  // [head_dim][lanes], scaled
  LaneStates<T> states;  // o is undefined until `started`
  int64_t first;         // the row in lane 0
  int rows;              // lanes in use
  bool started;
};

template <class T> class RowTileLoop {
 public:
  static constexpr int lanes = tile_lanes<T>, w = width<T>, score_rows = rows_block + tile_height;

  // s and bias: scratch of score_rows * lanes each.
  RowTileLoop(const Attention& a, const Task& task, T* s, T* bias)
      : a_(a),
        sequence_(*task.sequence),
        group_(a.query_heads / a.kv_heads),
        first_head_(task.kv_head * group_),
        head_dim_(int(a.head_dim)),
        v_head_dim_(int(a.v_head_dim)),
        s_(s),
        bias_(bias) {}

  // Q^T, scaled; rows past the last repeat it.
  void load_queries(const RowTile<T>& tile) const {
    with_float_type(a_.q_type, [&](auto s) { transpose_queries<decltype(s)>(tile); });
  }

  void add(RowTile<T>& tile, PanelBlock<T>& block) const {
    if (tile.rows > w) add_block<2>(tile, block);
    else add_block<1>(tile, block);
  }

  // O^T back to rows: the states of tile.rows rows; there must be room for `lanes`.
  void to_rows(const RowTile<T>& tile, const RowStates<T>& states) const {
    const LaneStates<T>& from = tile.states;
    const bool any = from.any_keys();
    for (int r = 0; r < tile.rows; r++) states.m[r] = from.m[r], states.l[r] = from.l[r];
    for (int r = 0; r < tile.rows; r += w)
      for (int c = 0; c < v_head_dim_; c += w) {
        Vec<T> square[w];
#pragma GCC unroll 16
        for (int i = 0; i < w; i++)
          square[i] = any && c + i < v_head_dim_ ? load(from.o + (c + i) * lanes + r) : Vec<T>{};
        transpose<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < w; i++) store(states.o + (r + i) * states.stride + c, square[i]);
      }
  }

 private:
  template <class S> void transpose_queries(const RowTile<T>& tile) const {
    const T scale = query_scale<T>(a_);
    for (int r = 0; r < tile.rows; r += w) {
      const S* rows[w];
      for (int i = 0; i < w; i++) rows[i] = reinterpret_cast<const S*>(query_row(tile, r + i));
      int d = 0;
      for (; d + w <= head_dim_; d += w) {
        Vec<T> square[w];
#pragma GCC unroll 16
        for (int i = 0; i < w; i++) square[i] = load_as<T, S>(rows[i] + d) * scale;
        transpose<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < w; i++) store(tile.q + (d + i) * lanes + r, square[i]);
      }
      for (; d < head_dim_; d++)
        for (int i = 0; i < w; i++) tile.q[d * lanes + r + i] = convert<T>(read<S>(rows[i] + d)) * scale;
    }
  }

  template <int N> void add_block(RowTile<T>& tile, PanelBlock<T>& block) const {
    const BlockRange range = block_range(a_, sequence_, tile.first / group_, (tile.first + tile.rows - 1) / group_,
                                         block.begin, block.keys.count);
    if (range.cover() == Cover::skip) return;
    // Panels are whole: keys too many before the range are masked.
    const int from = range.from - range.from % tile_height, to = range.to, n = to - from;
    const Cover cover = a_.mask ? load_mask(tile, block.begin + from, n) : Cover::whole;
    if (cover == Cover::skip) return;

    const bool edges = from < range.all_from || to > range.all_to, masked = cover == Cover::partial;
    const ScoreBlock<T, N, TileCoordinates> scores{s_,
                                                   n,
                                                   lanes,
                                                   {tile.first, tile.first + tile.rows - 1, n},
                                                   block.begin + from,
                                                   masked ? bias_ : nullptr,
                                                   edges,
                                                   {range.all_from - from, range.all_to - from}};
    Vec<T> top[N], alpha[N];
    multiply_keys<N>(tile, block, from, to, top);
    if (edges || masked || in_natural_units(a_) || to % tile_height != 0) scores.apply(a_, sequence_, group_, top);
    scores.weights(top, tile.states.m, tile.states.l, alpha);
    if ((edges || masked) && !all_finite(block)) add_values<N, true>(tile, block, from, n, alpha);
    else add_values<N, false>(tile, block, from, n, alpha);
    tile.started = true;
  }

  // S^T of keys [from, to), and the largest score of each lane among whole panels.
  template <int N>
  void multiply_keys(const RowTile<T>& tile, const PanelBlock<T>& block, int from, int to, Vec<T> (&top)[N]) const {
    for (int v = 0; v < N; v++) top[v] = splat(-infinity<T>);
    if (block.k_packed) {
      for (int key = from; key < to; key += tile_height) {
        const T* panel = block.k + key / tile_height * head_dim_ * panel_width<T>;
        keys_tile<tile_height>(
            tile, [=](int k, int i) { return panel[k * panel_width<T> + i]; }, s_ + (key - from) * lanes, top);
      }
    } else {
      constexpr int height = rows_in_place;
      for (int key = from; key < to; key += height) {
        const T* rows[height];
        for (int i = 0; i < height; i++)
          rows[i] = reinterpret_cast<const T*>(block.keys.k[min(key + i, block.keys.count - 1)]);
        keys_tile<height>(tile, [&](int k, int i) { return read<T>(rows[i] + k); }, s_ + (key - from) * lanes, top);
      }
    }
  }
  template <int M, int N, class A>
  GQA_INLINE void keys_tile(const RowTile<T>& tile, A a, T* s, Vec<T> (&top)[N]) const {
    Tile<T, M, N> sum = {};
    multiply(sum, a, tile.q, head_dim_);
    each<M, N>([&](int i, int v) {
      store(s + i * lanes + v * w, sum.at[i][v]);
      top[v] = max(sum.at[i][v], top[v]);
    });
  }

  // O^T = alpha * O^T + V^T . P^T over the n keys at `from`.
  template <int N, bool select>
  void add_values(RowTile<T>& tile, const PanelBlock<T>& block, int from, int n, const Vec<T> (&alpha)[N]) const {
    const T* panel = block.v + from * panel_width<T>;
    cover(v_head_dim_, [&](auto height, int c) {
      constexpr int M = height.value;
      if (block.v_packed) {
        values_tile<M, N, select>(tile, [=](int k, int i) { return panel[k * panel_width<T> + i]; }, c, n, alpha);
        panel += rows_block * panel_width<T>;
      } else {
        const char* const* rows = block.keys.v + from;
        values_tile<M, N, select>(
            tile, [=](int k, int i) { return read<T>(rows[k] + (c + i) * sizeof(T)); }, c, n, alpha);
      }
    });
  }
  template <int M, int N, bool select, class A>
  GQA_INLINE void values_tile(const RowTile<T>& tile, A a, int c, int n, const Vec<T> (&alpha)[N]) const {
    T* o = tile.states.o + c * lanes;
    Tile<T, M, N> sum = {};
    if (tile.started) each<M, N>([&](int i, int v) { sum.at[i][v] = load(o + i * lanes + v * w) * alpha[v]; });
    if (select) multiply_selecting(sum, a, s_, n);
    else multiply(sum, a, s_, n);
    each<M, N>([&](int i, int v) { store(o + i * lanes + v * w, sum.at[i][v]); });
  }

  // The mask of n keys as a bias that lies as the scores do.
  Cover load_mask(const RowTile<T>& tile, int64_t key, int n) const {
    T rows[w * (rows_block + w)];
    MaskCover cover;
    for (int r = 0; r < tile.rows; r += w) {
      for (int i = 0; i < w; i++) {
        const int64_t row = row_of(tile, r + i);
        cover.add(
            mask_row(a_, sequence_, first_head_ + row % group_, row / group_, key, n, rows + i * (rows_block + w)));
      }
      for (int j = 0; j < n; j += w) {
        Vec<T> square[w];
#pragma GCC unroll 16
        for (int i = 0; i < w; i++) square[i] = load(rows + i * (rows_block + w) + j);
        transpose<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < w; i++) store(bias_ + (j + i) * lanes + r, square[i]);
      }
    }
    return cover.cover();
  }

  bool all_finite(PanelBlock<T>& block) const {
    if (!block.finite_known) {
      block.finite = values_are_finite<T>(block.keys, v_head_dim_);
      block.finite_known = true;
    }
    return block.finite;
  }

  // Lanes past the last row repeat it.
  int64_t row_of(const RowTile<T>& tile, int lane) const { return tile.first + min(lane, tile.rows - 1); }
  const char* query_row(const RowTile<T>& tile, int lane) const {
    const int64_t row = row_of(tile, lane);
    return at_row(a_.q, a_.q_strides, sequence_, first_head_ + row % group_, row / group_);
  }

  const Attention& a_;
  const Sequence& sequence_;
  const int64_t group_, first_head_;
  const int head_dim_, v_head_dim_;
  T *const s_, *const bias_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
