// exp2.h: the two elementary functions of attention: 2^x for the softmax, tanh for the soft cap.
#pragma once

#include <math.h>

#include "vec.h"

namespace gqa {
namespace GQA_ISA {
namespace {

template <class T, int n> GQA_INLINE Vec<T> polynomial(Vec<T> x, const T (&c)[n]) {
  Vec<T> y = splat(c[n - 1]);
#pragma GCC unroll 16
  for (int i = n - 2; i >= 0; i--) y = y * x + c[i];
  return y;
}

// 2^x for x <= 0: relative error below 2e-7 (float) and 3e-16 (double); exactly 1 at 0, exactly 0 at -infinity.
template <class T> GQA_INLINE Vec<T> exp2(Vec<T> x);
template <> GQA_INLINE Vec<float> exp2<float>(Vec<float> x) {
  static constexpr float c[] = {1.0f, 0.693147004f, 0.240222469f, 0.0555071086f, 0.00967129134f, 0.00132695213f};
  const Vec<float> f = fraction<float>(x), square = f * f;
  const Vec<float> p = ((f * c[5] + c[4]) * square + (f * c[3] + c[2])) * square + (f * c[1] + c[0]);
  return times_exp2<float>(p, x);
}
template <> GQA_INLINE Vec<double> exp2<double>(Vec<double> x) {
  static constexpr double c[] = {1.0,
                                 0.693147180559945697,
                                 0.24022650695910098,
                                 0.0555041086647903946,
                                 0.00961812910760700238,
                                 0.00133335581534399647,
                                 0.000154035304415721303,
                                 1.52527273851938682e-5,
                                 1.32154426753298221e-6,
                                 1.01806476592341389e-7,
                                 7.07257041281442351e-9,
                                 4.07807192958833667e-10};
  return times_exp2<double>(polynomial<double>(fraction<double>(x), c), x);
}

// The same of a single number, its inverse, and a square root: by the C library's own names, since the overloads of C++
// are inline functions that objects compiled for different instruction sets would share.
GQA_INLINE float exp2_of(float x) { return ::exp2f(x); }
GQA_INLINE double exp2_of(double x) { return ::exp2(x); }
GQA_INLINE float log2_of(float x) { return ::log2f(x); }
GQA_INLINE double log2_of(double x) { return ::log2(x); }
GQA_INLINE float sqrt_of(float x) { return ::sqrtf(x); }

// tanh: relative error below 4e-7 (float); the C library's for double.
template <class T> GQA_INLINE Vec<T> tanh(Vec<T> x);
template <> GQA_INLINE Vec<float> tanh<float>(Vec<float> x) {
  static constexpr float p[] = {0.99999998f, 0.13380962f, 0.0034955101f, 2.0607727e-5f, 1.3352694e-8f};
  static constexpr float q[] = {1.0f, 0.46714278f, 0.025876691f, 3.2855039e-4f, 7.7757688e-7f};
  // Beyond +-9 tanh is +-1 in float. NaN stays NaN.
  x = max(splat(-9.0f), x);
  x = -max(splat(-9.0f), -x);
  const Vec<float> z = x * x;
  return x * polynomial<float>(z, p) / polynomial<float>(z, q);
}
template <> GQA_INLINE Vec<double> tanh<double>(Vec<double> x) {
  for (int l = 0; l < width<double>; l++) x[l] = ::tanh(x[l]);
  return x;
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
