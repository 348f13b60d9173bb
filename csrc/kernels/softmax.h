// softmax.h: the online softmax over a block of scores, lane by lane.
//
// Scores lie as s[step][lane]. A lane belongs to one row of Q; all logits are in base 2. Reference: Milakov and
// Gimelshein 2018, arXiv:1805.02867.
#pragma once

#include "exp2.h"

namespace gqa {
namespace GQA_ISA {
namespace {

template <class T> constexpr T infinity = T(__builtin_inf());
template <class T> constexpr T log2e = T(1.4426950408889634);
template <class T> constexpr T ln2 = T(0.6931471805599453);

// The scores of one block: `steps` steps of N vectors, `stride` elements apart.
template <class T, int N> struct Scores {
  T* s;
  int steps, stride;

  GQA_INLINE T* at(int step, int v) const { return s + step * stride + v * width<T>; }

  void soft_cap(T cap) const {
    for (int t = 0; t < steps; t++)
      for (int v = 0; v < N; v++) store(at(t, v), tanh<T>(load(at(t, v)) / cap) * (cap * log2e<T>));
  }

  // bias lies as s does; -infinity masks whatever the score is.
  void add(const T* bias) const {
    for (int t = 0; t < steps; t++)
      for (int v = 0; v < N; v++) {
        const Vec<T> b = load(bias + (at(t, v) - s)), x = load(at(t, v));
        store(at(t, v), b == -infinity<T> ? b : x + b);
      }
  }

  // Masks, in steps [begin, end), the keys outside [low, high); lane l is at key first[l] in step 0.
  void mask(const T* first, const T* low, const T* high, int begin, int end) const {
    for (int v = 0; v < N; v++) {
      const Vec<T> from = load(low + v * width<T>), to = load(high + v * width<T>);
      for (int t = begin; t < end; t++) {
        const Vec<T> key = load(first + v * width<T>) + T(t), x = load(at(t, v));
        store(at(t, v), key < from ? splat(-infinity<T>) : key < to ? x : splat(-infinity<T>));
      }
    }
  }

  GQA_INLINE void maximum(Vec<T> (&top)[N]) const {
    for (int v = 0; v < N; v++) top[v] = splat(-infinity<T>);
    for (int t = 0; t < steps; t++)
      for (int v = 0; v < N; v++) top[v] = max(load(at(t, v)), top[v]);
  }

  // Turns scores into weights 2^(s - m), where m = max(m, top), and rescales the sum l; alpha is the rescaling factor.
  GQA_INLINE void weights(const Vec<T> (&top)[N], T* m, T* l, Vec<T> (&alpha)[N]) const {
    Vec<T> shift[N], sum[N];
    for (int v = 0; v < N; v++) {
      const Vec<T> before = load(m + v * width<T>), now = max(top[v], before);
      shift[v] = now == -infinity<T> ? splat(T(0)) : now;
      alpha[v] = exp2<T>(before - shift[v]);
      sum[v] = load(l + v * width<T>) * alpha[v];
      store(m + v * width<T>, now);
    }
    for (int t = 0; t < steps; t++)
      for (int v = 0; v < N; v++) {
        const Vec<T> p = exp2<T>(load(at(t, v)) - shift[v]);
        store(at(t, v), p);
        sum[v] += p;
      }
    for (int v = 0; v < N; v++) store(l + v * width<T>, sum[v]);
  }
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
