// states.h: the state of rows between splits of their keys, in the two layouts of the loops, and how states merge.
//
// A row's state is (o, m, l): o the weighted sum of values, not normalised; m the largest base-2 logit; l the sum of
// the weights 2^(s - m). A row without keys has l == 0 and m == -infinity, and merging it changes no bit of the other
// state: so a row's result does not depend on which rows share its task, nor on splits that none of its keys is in.
#pragma once

#include "mask.h"
#include "tile.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Rows that share a pass with channels in the lanes; a group's last rows may be padding, which its states have room
// for.
template <class T> constexpr int max_rows_at_once = width<T> < 4 ? width<T> : 4;

// Channels in the lanes: o[row][stride], m[row], l[row].
template <class T> struct RowStates {
  T *o, *m, *l;
  int64_t rows, stride;

  static int64_t padded_rows(const TaskShape& shape) { return shape.rows + max_rows_at_once<T>; }
  static int64_t padded_channels(const TaskShape& shape) {
    return (shape.v_head_dim + width<T> - 1) / width<T> * width<T>;
  }
  static size_t bytes(const TaskShape& shape) {
    return size_t(padded_rows(shape) * (padded_channels(shape) + 2)) * sizeof(T);
  }
  static RowStates at(void* memory, const TaskShape& shape) {
    T* o = static_cast<T*>(memory);
    const int64_t rows = padded_rows(shape), stride = padded_channels(shape);
    return {o, o + rows * stride, o + rows * (stride + 1), rows, stride};
  }

  void clear() const {
    for (int64_t i = 0; i < rows * stride; i++) o[i] = 0;
    for (int64_t r = 0; r < rows; r++) m[r] = -infinity<T>, l[r] = 0;
  }

  // Adds the states of later keys.
  void merge(const RowStates& later) const {
    for (int64_t r = 0; r < rows; r++) {
      if (later.l[r] == 0) continue;
      T* const to = o + r * stride;
      const T* const from = later.o + r * stride;
      if (l[r] == 0) {
        memcpy(to, from, size_t(stride) * sizeof(T));
        m[r] = later.m[r], l[r] = later.l[r];
        continue;
      }
      const T top = m[r] > later.m[r] ? m[r] : later.m[r], shift = top == -infinity<T> ? T(0) : top;
      const T mine = exp2_of(m[r] - shift), theirs = exp2_of(later.m[r] - shift);
      for (int64_t c = 0; c < stride; c += width<T>) store(to + c, load(to + c) * mine + load(from + c) * theirs);
      m[r] = top;
      l[r] = l[r] * mine + later.l[r] * theirs;
    }
  }
};

// Rows in the lanes, tile by tile: o[tile][channel][lane], m[tile][lane], l[tile][lane]. Where every l of a tile is 0,
// its o has not been written.
template <class T> struct LaneStates {
  static constexpr int lanes = tile_lanes<T>, w = width<T>;

  T *o, *m, *l;
  int64_t tiles, channels;

  static int64_t tiles_of(const TaskShape& shape) { return (shape.rows + lanes - 1) / lanes; }
  static size_t bytes(const TaskShape& shape) {
    return size_t(tiles_of(shape) * lanes * (shape.v_head_dim + 2)) * sizeof(T);
  }
  static LaneStates at(void* memory, const TaskShape& shape) {
    T* o = static_cast<T*>(memory);
    const int64_t tiles = tiles_of(shape), size = tiles * lanes;
    return {o, o + size * shape.v_head_dim, o + size * (shape.v_head_dim + 1), tiles, shape.v_head_dim};
  }

  LaneStates tile(int64_t t) const { return {o + t * channels * lanes, m + t * lanes, l + t * lanes, 1, channels}; }

  void clear() const {
    for (int64_t r = 0; r < tiles * lanes; r++) m[r] = -infinity<T>, l[r] = 0;
  }
  bool any_keys() const {  // of one tile
    bool any = false;
    for (int r = 0; r < lanes; r++) any |= l[r] != 0;
    return any;
  }

  // Adds the states of later keys.
  void merge(const LaneStates& later) const {
    for (int64_t t = 0; t < tiles; t++) tile(t).merge_tile(later.tile(t));
  }

 private:
  void merge_tile(const LaneStates& later) const {
    if (!later.any_keys()) return;
    if (!any_keys()) {
      memcpy(o, later.o, size_t(channels * lanes) * sizeof(T));
      memcpy(m, later.m, lanes * sizeof(T));
      memcpy(l, later.l, lanes * sizeof(T));
      return;
    }
    constexpr int n = tile_vectors;
    Vec<T> mine[n], theirs[n], l0[n], l1[n];
    auto merged = [&](int v, Vec<T> x, Vec<T> y) __attribute__((always_inline)) {
      const Vec<T> sum = x * mine[v] + y * theirs[v];
      return l1[v] == 0 ? x : l0[v] == 0 ? y : sum;
    };
    for (int v = 0; v < n; v++) {
      const Vec<T> m0 = load(m + v * w), m1 = load(later.m + v * w);
      const Vec<T> top = max(m0, m1), shift = top == -infinity<T> ? splat(T(0)) : top;
      l0[v] = load(l + v * w), l1[v] = load(later.l + v * w);
      mine[v] = exp2<T>(m0 - shift), theirs[v] = exp2<T>(m1 - shift);
      store(m + v * w, top);
      store(l + v * w, merged(v, l0[v], l1[v]));
    }
    for (int64_t c = 0; c < channels * lanes; c += lanes)
      for (int v = 0; v < n; v++) store(o + c + v * w, merged(v, load(o + c + v * w), load(later.o + c + v * w)));
  }
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
