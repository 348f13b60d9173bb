// score_block.h: the scores of some rows with one block of keys, between the product with the keys and the softmax.
//
// Scores lie as s[step][lane]. A lane belongs to one row of Q; which row, and which key a step is for it, the
// coordinates tell, since the two loops deal rows and keys to lanes in different ways. `apply` is the one place where
// scores are changed: soft cap, mask, the edges of lengths, causal and windows.
// Online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867.
#pragma once

#include "mask.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Coordinates with rows in the lanes: lane l is row first + l, a step is the same key for all of them.
struct TileCoordinates {
  static constexpr int phases = 1;
  int64_t first, last;  // rows; lanes past the last repeat it
  int keys;

  int64_t row(int lane) const { return min(first + lane, last); }
  int first_key(int, int) const { return 0; }
  int end_key(int, int) const { return keys; }
};

// N vectors of lanes, `stride` elements from one step to the next. Coordinates have
//   phases: step t is of phase t % phases; in each, lane l goes on from key to key, first_key(phase, l) on
//   end_key(phase, l): where its keys end; keys are counted from `begin`
//   row(l): of the KV head
template <class T, int N, class Coordinates> struct ScoreBlock {
  static constexpr int w = width<T>, lanes = N * w;

  T* s;
  int steps, stride;
  Coordinates coordinates;
  int64_t begin;  // the sequence's key that is key 0 of the block
  const T* bias;  // lies as s does; null: none. -infinity masks whatever the score is
  bool edges;     // some row does not attend some key, or a lane's keys end early
  int whole[2];   // edges: the steps [0] to [1] need no masking

  // Everything that happens to scores; `top` is the maximum of each lane then.
  GQA_INLINE void apply(const Attention& a, const Sequence& sequence, int64_t group, Vec<T> (&top)[N]) const {
    if (a.softcap > 0) soft_cap(T(a.softcap));
    if (bias) add_bias();
    if (edges) mask_edges(a, sequence, group);
    maximum(top);
  }

  // Turns scores into weights 2^(s - m), where m = max(m, top), and rescales the sum l; alpha is the rescaling factor.
  GQA_INLINE void weights(const Vec<T> (&top)[N], T* m, T* l, Vec<T> (&alpha)[N]) const {
    Vec<T> shift[N], sum[N];
    for (int v = 0; v < N; v++) {
      const Vec<T> before = load(m + v * w), now = max(top[v], before);
      shift[v] = now == -infinity<T> ? splat(T(0)) : now;
      alpha[v] = exp2<T>(before - shift[v]);
      sum[v] = load(l + v * w) * alpha[v];
      store(m + v * w, now);
    }
    each_step(0, steps, 1, [&](int, T* x) {
      for (int v = 0; v < N; v++) {
        const Vec<T> p = exp2<T>(load(x + v * w) - shift[v]);
        store(x + v * w, p);
        sum[v] += p;
      }
    });
    for (int v = 0; v < N; v++) store(l + v * w, sum[v]);
  }

 private:
  // f(t, x) for the steps t = from, from + by, ... before `to`, whose first score is at x. With locals in its loop:
  // what is stored through x could be a member, as far as the compiler knows.
  template <class F> GQA_INLINE void each_step(int from, int to, int by, F f) const {
    const int64_t stride_by = int64_t(by) * stride;
    T* x = s + int64_t(from) * stride;
    for (int t = from; t < to; t += by, x += stride_by) f(t, x);
  }

  // Takes natural units and gives base 2, as in_natural_units says.
  void soft_cap(T cap) const {
    each_step(0, steps, 1, [=](int, T* x) {
      for (int v = 0; v < N; v++) store(x + v * w, tanh<T>(load(x + v * w) / cap) * (cap * log2e<T>));
    });
  }

  void add_bias() const {
    each_step(0, steps, 1, [offset = bias - s](int, T* x) {
      for (int v = 0; v < N; v++) {
        const Vec<T> b = load(x + offset + v * w), score = load(x + v * w);
        store(x + v * w, b == -infinity<T> ? b : score + b);
      }
    });
  }

  // Masks by selection, so that a NaN behind a mask does not show.
  void mask_edges(const Attention& a, const Sequence& sequence, int64_t group) const {
    for (int phase = 0; phase < Coordinates::phases; phase++) {
      T key[lanes], low[lanes], high[lanes];
      for (int l = 0; l < lanes; l++) {
        const Interval interval = attended(a, sequence, coordinates.row(l) / group);
        key[l] = T(coordinates.first_key(phase, l));
        low[l] = T(max(interval.begin - begin, 0));
        high[l] = T(min(interval.end - begin, coordinates.end_key(phase, l)));
      }
      mask(phase, 0, whole[0], key, low, high);
      mask(phase, max(whole[0], whole[1]), steps, key, low, high);
    }
  }

  // Masks, in steps [from, to), the keys outside [low, high).
  void mask(int phase, int64_t from, int64_t to, const T* first, const T* low, const T* high) const {
    constexpr int phases = Coordinates::phases;
    const int begin_at = int(from) + (phase + phases - int(from) % phases) % phases;
    each_step(begin_at, int(to), phases, [=](int t, T* x) {
      for (int v = 0; v < N; v++) {
        const Vec<T> key = load(first + v * w) + T(t / phases), score = load(x + v * w);
        const Vec<T> below_high = key < load(high + v * w) ? score : splat(-infinity<T>);
        store(x + v * w, key < load(low + v * w) ? splat(-infinity<T>) : below_high);
      }
    });
  }

  GQA_INLINE void maximum(Vec<T> (&top)[N]) const {
    for (int v = 0; v < N; v++) top[v] = splat(-infinity<T>);
    each_step(0, steps, 1, [&](int, T* x) {
      for (int v = 0; v < N; v++) top[v] = max(load(x + v * w), top[v]);
    });
  }
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
