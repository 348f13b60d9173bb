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

// Ends `rows` rows from row `first` of the task's KV head on, whose states are those from 0 on, and writes them.
template <class T>
void write_rows(const Attention& a, const Task& task, int64_t first, int64_t rows, const RowStates<T>& states) {
  const int64_t group = a.query_heads / a.kv_heads;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t query = (first + i) / group, head = task.kv_head * group + (first + i) % group;
    const End<T> end = end_of_row<T>(a, head, states.m[i], states.l[i]);
    char* to = at_row(a.out, a.out_strides, *task.sequence, head, query);
    const T* o = states.o + i * states.stride;
    if (a.lse) write(at_row(a.lse, a.lse_strides, *task.sequence, head, query), end.lse);
    with_float_type(a.out_type,
                    [&](auto s) { write_row<decltype(s)>(to, a.out_channel_stride, o, end.scale, a.v_head_dim); });
  }
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
