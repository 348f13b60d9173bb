// state.h: the state of a row (o, m, l) between splits of its keys, and its end in the output.
//
// o is the weighted sum of values, unnormalised; m the largest base-2 logit; l the sum of the weights 2^(s - m).
#pragma once

#include "mask.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// The states of a task's rows, row by row: o (rows, stride), m (rows), l (rows).
template <class T> struct States {
  T *o, *m, *l;
  int64_t stride;

  static int64_t padded(int64_t v_head_dim) { return (v_head_dim + width<T> - 1) / width<T> * width<T>; }
  static size_t bytes(int64_t rows, int64_t v_head_dim) { return size_t(rows * (padded(v_head_dim) + 2)) * sizeof(T); }
  static States at(void* memory, int64_t rows, int64_t v_head_dim) {
    T* o = static_cast<T*>(memory);
    const int64_t stride = padded(v_head_dim);
    return {o, o + rows * stride, o + rows * (stride + 1), stride};
  }

  States from(int64_t row) const { return {o + row * stride, m + row, l + row, stride}; }

  void clear(int64_t rows) const {
    for (int64_t i = 0; i < rows * stride; i++) o[i] = 0;
    for (int64_t r = 0; r < rows; r++) m[r] = -infinity<T>, l[r] = 0;
  }

  // Adds the states of other, disjoint keys.
  void merge(const States& other, int64_t rows) const {
    for (int64_t r = 0; r < rows; r++) {
      const T top = m[r] > other.m[r] ? m[r] : other.m[r], shift = top == -infinity<T> ? T(0) : top;
      const T mine = exp2_of(m[r] - shift), theirs = exp2_of(other.m[r] - shift);
      for (int64_t c = 0; c < stride; c += width<T>) {
        T* x = o + r * stride + c;
        store(x, load(x) * mine + load(other.o + r * stride + c) * theirs);
      }
      m[r] = top;
      l[r] = l[r] * mine + other.l[r] * theirs;
    }
  }
};

// What becomes of a row: its o times `scale` is the output.
template <class T> struct End {
  T scale, lse;
};
template <class T> GQA_INLINE End<T> end_of_row(const Attention& a, int64_t head, T m, T l) {
  if (a.sinks && a.sinks[head] != -infinity<double>) {
    const T sink = T(a.sinks[head]) * log2e<T>, top = m > sink ? m : sink;
    const T rescale = exp2_of(m - top), sum = l * rescale + exp2_of(sink - top);
    return {rescale / sum, a.lse ? (top + log2_of(sum)) * ln2<T> : T(0)};
  }
  if (l == 0) return {0, -infinity<T>};
  return {1 / l, a.lse ? (m + log2_of(l)) * ln2<T> : T(0)};
}

// What q is multiplied with when it is loaded: logits are in base 2, once a soft cap between has done its part.
template <class T> GQA_INLINE T query_scale(const Attention& a) {
  return T(a.scale * (a.softcap > 0 ? 1.0 : log2e<double>));
}

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

// Ends the rows first, first + 1, ... and writes them to the output.
template <class T>
void write_output(const Attention& a, const Task& task, int64_t first, int64_t rows, const States<T>& states) {
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
