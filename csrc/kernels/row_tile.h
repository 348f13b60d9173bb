// row_tile.h: one tile of rows in the lanes, and what a block of keys adds to it.
//
// Everything is kept transposed: S^T[key][row] = K . Q^T and O^T[channel][row] += V^T . P^T, so that the softmax is
// lane-wise and K and V are read as broadcast scalars.
#pragma once

#include "tile_scores.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// A block of keys: row addresses, and panels once it was packed.
template <class T> struct PanelBlock {
  KeyBlock keys;
  int64_t begin;   // index of its first key
  int64_t number;  // of its multiple of keys
  T *k, *v;
  T* program_keys;  // values of a program
  bool k_packed, v_packed;
  bool finite_known, finite;  // finite: every value is
};

// tile_lanes rows of Q, and their states.
template <class T> struct RowTile {
  T* q;                  // [head_dim][lanes], scaled
  LaneStates<T> states;  // o is undefined until `started`
  LaneRows rows;
  bool started;
  int64_t number;   // among the task's tiles
  T* program_rows;  // values of a program
};

template <class T> class RowTileLoop {
 public:
  static constexpr int lanes = tile_lanes<T>, w = width<T>;

  // s and bias: scratch of score_rows * lanes each.
  RowTileLoop(const Attention& a, const Task& task, T* s, T* bias, const ProgramMemory<T>& program)
      : a_(a),
        task_(task),
        head_(a, *task.sequence, task.kv_head),
        head_dim_(int(a.head_dim)),
        v_head_dim_(int(a.v_head_dim)),
        s_(s),
        bias_(bias),
        program_(a, *task.sequence, task.kv_head, program) {}

  // Q^T, scaled; rows past the last repeat it. And what a program has of rows.
  void load_queries(const RowTile<T>& tile) const {
    if (a_.program) {
      const TileCoordinates coordinates{tile.rows.first, tile.rows.last(), 0};
      if (tile.rows.count > w) program_.template load_rows<2>(coordinates, tile.program_rows);
      else program_.template load_rows<1>(coordinates, tile.program_rows);
    }
    const char* rows[lanes];
    for (int r = 0; r < lanes; r++) rows[r] = head_.at(a_.q, a_.q_strides, tile.rows.row(r));
    with_float_type(a_.q_type, [&](auto s) {
      transpose_rows<T, decltype(s)>(rows, tile.rows.count > w ? 2 : 1, head_dim_, query_scale<T>(a_), tile.q);
    });
  }

  // What a program has of the block's keys.
  void load_program_keys(const PanelBlock<T>& block) const {
    if (!a_.program) return;
    const TileCoordinates coordinates{0, 0, block.keys.count};
    program_.load_keys(coordinates, block.begin, block.keys.count, block.program_keys);
  }

  void add(RowTile<T>& tile, PanelBlock<T>& block) const {
    if (tile.rows.count > w) add_block<2>(tile, block);
    else add_block<1>(tile, block);
  }

  // O^T back to rows: the states of the tile's rows; there must be room for `lanes`.
  void to_rows(const RowTile<T>& tile, const RowStates<T>& states) const {
    const LaneStates<T>& from = tile.states;
    const bool any = from.any_keys();
    for (int r = 0; r < tile.rows.count; r++) states.m[r] = from.m[r], states.l[r] = from.l[r];
    for (int r = 0; r < tile.rows.count; r += w)
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
  template <int N> void add_block(RowTile<T>& tile, PanelBlock<T>& block) const {
    const KeyCover cover = a_.program ? cover_of(task_.covers, tile.number, block.number) : all_visible;
    const TileRange range = tile_range(head_, tile.rows, block.begin, block.keys.count, bias_, cover);
    if (range.skip()) return;
    auto scores = score_block<N>(tile.rows, range, block.begin, s_, bias_);
    const BlockProgram<T> program = block_program(tile, block, range);
    if (program.scores || program.hides) scores.program = &program;
    Vec<T> top[N], alpha[N];
    multiply_keys<N>(tile, block, range.from, range.to, top);
    scores.may_stay_natural = true;
    bool hidden = !range.whole(), natural = false;
    if (hidden || in_natural_units(a_) || range.to % tile_height != 0) {
      const auto applied = scores.apply(a_, head_.sequence, head_.group, top);
      hidden |= applied.hidden, natural = applied.natural;
    }
    scores.weights(top, tile.states.m, tile.states.l, alpha, natural);
    if (hidden && !all_finite(block)) add_values<N, true>(tile, block, range.from, range.keys(), alpha);
    else add_values<N, false>(tile, block, range.from, range.keys(), alpha);
    tile.started = true;
  }

  BlockProgram<T> block_program(const RowTile<T>& tile, const PanelBlock<T>& block, const TileRange& range) const {
    return {&program_,
            tile.program_rows,
            block.program_keys,
            range.from,
            changes_scores(a_.program),
            range.hides(),
            {range.shown_from - range.from, range.shown_to - range.from}};
  }

  // S^T of keys [from, to), and the largest score of each lane among whole panels.
  template <int N>
  void multiply_keys(const RowTile<T>& tile, const PanelBlock<T>& block, int from, int to, Vec<T> (&top)[N]) const {
    for (int v = 0; v < N; v++) top[v] = splat(-infinity<T>);
    T* const s = s_;
    const auto end = [&](int key, int v, Vec<T> sums) __attribute__((always_inline)) {
      store(s + key * lanes + v * w, sums);
      top[v] = max(sums, top[v]);
    };
    if (block.k_packed) {
      multiply_key_panels<N>(block.k, tile.q, head_dim_, from, to, end);
    } else {
      constexpr int height = rows_in_place;
      for (int key = from; key < to; key += height) {
        const T* rows[height];
        for (int i = 0; i < height; i++)
          rows[i] = reinterpret_cast<const T*>(block.keys.k[min(key + i, block.keys.count - 1)]);
        keys_tile<height, N>([&](int k, int i) { return read<T>(rows[i] + k); }, tile.q, head_dim_,
                             [&](int i, int v, Vec<T> sums) { end(key - from + i, v, sums); });
      }
    }
  }

  // O^T = alpha * O^T + V^T . P^T over the n keys at `from`.
  template <int N, bool select>
  void add_values(RowTile<T>& tile, const PanelBlock<T>& block, int from, int n, const Vec<T> (&alpha)[N]) const {
    const T* panel = block.v + from * panel_width<T>;
    const auto rescale = [&](int v, Vec<T> o) __attribute__((always_inline)) { return o * alpha[v]; };
    cover(v_head_dim_, [&](auto height, int c) {
      constexpr int M = height.value;
      T* const o = tile.states.o + c * lanes;
      if (block.v_packed) {
        values_tile<M, N, select>([=](int k, int i) { return panel[k * panel_width<T> + i]; }, s_, n, o, tile.started,
                                  rescale);
        panel += rows_block * panel_width<T>;
      } else {
        const char* const* rows = block.keys.v + from;
        values_tile<M, N, select>([=](int k, int i) { return read<T>(rows[k] + (c + i) * sizeof(T)); }, s_, n, o,
                                  tile.started, rescale);
      }
    });
  }

  bool all_finite(PanelBlock<T>& block) const {
    if (!block.finite_known) {
      block.finite = values_are_finite<T>(block.keys.values(), 0, block.keys.count, v_head_dim_);
      block.finite_known = true;
    }
    return block.finite;
  }

  const Attention& a_;
  const Task& task_;
  const HeadRows head_;
  const int head_dim_, v_head_dim_;
  T *const s_, *const bias_;
  const ProgramRunner<T> program_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
