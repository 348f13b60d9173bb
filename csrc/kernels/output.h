// output.h: rows of q as they are read, and rows of the output as they are written.
#pragma once

#include "states.h"

namespace gqa {
namespace GQA_ISA {
namespace {

template <class P> GQA_INLINE P at_row(P base, const Strides& s, const Sequence& q, int64_t head, int64_t query) {
  return base + q.batch * s.batch + head * s.head + (q.token + query) * s.token;
}

// Writes width<T> channels, or the first n of them, as type S.
template <class S, class T> GQA_INLINE void store_channels(char* to, int64_t channel_stride, Vec<T> x, int64_t n) {
  if (n >= width<T> && channel_stride == int64_t(sizeof(S))) {
    store_as<S, T>(reinterpret_cast<S*>(to), x);
    return;
  }
  S rounded[width<T>];
  store_as<S, T>(rounded, x);
  for (int l = 0; l < width<T> && l < n; l++) write(to + l * channel_stride, rounded[l]);
}

template <class S, class T> void write_row(char* to, int64_t channel_stride, const T* o, T scale, int64_t channels) {
  for (int64_t c = 0; c < channels; c += width<T>)
    store_channels<S, T>(to + c * channel_stride, channel_stride, load(o + c) * scale, channels - c);
}

template <class T>
GQA_INLINE T* state_row(const StateRows& rows, const Sequence& q, int64_t slot, int64_t head, int64_t query) {
  const Strides& s = rows.strides;
  return reinterpret_cast<T*>(rows.data + slot * s.batch + head * s.head + (q.token + query) * s.token);
}

// Ends `rows` rows from row `first` of the task's KV head on, whose states are those from 0 on, and writes them; or
// hands them over as they are.
template <class T>
void write_rows(const Attention& a, const Task& task, int64_t first, int64_t rows, const RowStates<T>& states) {
  const int64_t group = a.query_heads / a.kv_heads;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t query = (first + i) / group, head = task.kv_head * group + (first + i) % group;
    if (a.states.data) {
      T* const to = state_row<T>(a.states, *task.sequence, task.sequence->slot, head, query);
      memcpy(to, states.o + i * states.stride, size_t(a.v_head_dim) * sizeof(T));
      to[a.v_head_dim] = states.m[i], to[a.v_head_dim + 1] = states.l[i];
      continue;
    }
    const End<T> end = end_of_row<T>(a, head, states.m[i], states.l[i]);
    char* to = at_row(a.out, a.out_strides, *task.sequence, head, query);
    const T* o = states.o + i * states.stride;
    if (a.lse) write(at_row(a.lse, a.lse_strides, *task.sequence, head, query), end.lse);
    with_float_type(a.out_type,
                    [&](auto s) { write_row<decltype(s)>(to, a.out_channel_stride, o, end.scale, a.v_head_dim); });
  }
}

// The task's rows of states that somebody has handed over; `states` are cleared.
template <class T> void read_rows(const Attention& a, const Task& task, int64_t slot, const RowStates<T>& states) {
  const int64_t group = a.query_heads / a.kv_heads;
  for (int64_t row = task.row_begin; row < task.row_end; row++) {
    const int64_t i = row - task.row_begin;
    const T* const from =
        state_row<T>(a.subtrees, *task.sequence, slot, task.kv_head * group + row % group, row / group);
    memcpy(states.o + i * states.stride, from, size_t(a.v_head_dim) * sizeof(T));
    states.m[i] = from[a.v_head_dim], states.l[i] = from[a.v_head_dim + 1];
  }
}
template <class T> void read_rows(const Attention& a, const Task& task, int64_t slot, const LaneStates<T>& states) {
  constexpr int lanes = LaneStates<T>::lanes;
  const int64_t group = a.query_heads / a.kv_heads;
  for (int64_t t = 0; t < states.tiles; t++) {
    const LaneStates<T> tile = states.tile(t);
    const int64_t first = task.row_begin + t * lanes, rows = min(lanes, task.row_end - first);
    for (int64_t i = 0; i < lanes; i++) {
      const int64_t row = first + min(i, rows - 1);  // lanes past the last row repeat it
      const T* const from =
          state_row<T>(a.subtrees, *task.sequence, slot, task.kv_head * group + row % group, row / group);
      for (int64_t c = 0; c < a.v_head_dim; c++) tile.o[c * lanes + i] = from[c];
      tile.m[i] = from[a.v_head_dim], tile.l[i] = from[a.v_head_dim + 1];
    }
  }
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
