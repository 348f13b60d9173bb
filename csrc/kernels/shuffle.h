// shuffle.h: moving lanes about: the transpose of a square of vectors, and the sums of several vectors at once.
#pragma once

#include "vec.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Lane l of the result is lane Map::at(l) of a and b laid end to end.
template <class T, class Map, int... l>
GQA_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, std::integer_sequence<int, l...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Map::at(l)...);
#else
  return __builtin_shuffle(a, b, Vec<Int<T>>{Map::at(l)...});
#endif
}
template <class T, class Map> GQA_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
  return shuffle<T, Map>(a, b, std::make_integer_sequence<int, width<T>>{});
}

// Lanes with bit h clear and those with bit h set change places across the pair (a, b): a 2 x 2 transpose of blocks.
template <int w, int h> struct LowHalves {
  static constexpr int at(int l) { return l & h ? w + (l ^ h) : l; }
};
template <int w, int h> struct HighHalves {
  static constexpr int at(int l) { return l & h ? w + l : l ^ h; }
};

// x[i] lane l <-> x[l] lane i.
template <class T, int h = width<T> / 2> GQA_INLINE void transpose(Vec<T> (&x)[width<T>]) {
  constexpr int w = width<T>;
#pragma GCC unroll 16
  for (int i = 0; i < w; i++) {
    if (i & h) continue;
    const Vec<T> a = x[i], b = x[i + h];
    x[i] = shuffle<T, LowHalves<w, h>>(a, b);
    x[i + h] = shuffle<T, HighHalves<w, h>>(a, b);
  }
  if constexpr (h > 1) transpose<T, h / 2>(x);
}

// Lane l of the result is the sum of x[l]'s lanes.
template <class T, int h = width<T> / 2> GQA_INLINE Vec<T> sums(Vec<T> (&x)[2 * h]) {
  constexpr int w = width<T>;
  Vec<T> y[h];
#pragma GCC unroll 16
  for (int i = 0; i < h; i++)
    y[i] = shuffle<T, LowHalves<w, h>>(x[i], x[i + h]) + shuffle<T, HighHalves<w, h>>(x[i], x[i + h]);
  if constexpr (h > 1) return sums<T, h / 2>(y);
  else return y[0];
}

// The sum, or the maximum, over the lanes that agree with each lane modulo `period`, a power of two.
template <int w, int h> struct Swapped {
  static constexpr int at(int l) { return l ^ h; }
};
template <class T, int period, class F, int h = width<T> / 2> GQA_INLINE Vec<T> fold(Vec<T> x, F f) {
  if constexpr (h >= period) return fold<T, period, F, h / 2>(f(x, shuffle<T, Swapped<width<T>, h>>(x, x)), f);
  else return x;
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
