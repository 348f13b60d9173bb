// elementary.h: functions of floats that score programs may call, beside those of exp2.h.
//
// In float exp, exp2 and log are within 2 ulp: the polynomials of Cephes (Moshier, netlib.org/cephes/single). In
// double, and for what is rare, they are the C library's, by its own names (exp2.h says why).
#pragma once

#include "exp2.h"
#include "whole.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// f of each lane, one after another: what a C library does is slow, and need not be in the code many times.
template <class T, class F> GQA_INLINE Vec<T> each_lane(Vec<T> x, F f) {
  T a[width<T>];
  store(a, x);
#pragma GCC unroll 1
  for (int l = 0; l < width<T>; l++) a[l] = f(a[l]);
  return load(a);
}
template <class T, class F> GQA_INLINE Vec<T> each_lane(Vec<T> x, Vec<T> y, F f) {
  T a[width<T>], b[width<T>];
  store(a, x), store(b, y);
#pragma GCC unroll 1
  for (int l = 0; l < width<T>; l++) a[l] = f(a[l], b[l]);
  return load(a);
}

// The C library's function for either type.
#define GQA_LIBRARY(name, function)                                \
  GQA_INLINE float name##_of(float x) { return ::function##f(x); } \
  GQA_INLINE double name##_of(double x) { return ::function(x); }
GQA_LIBRARY(exp, exp)
GQA_LIBRARY(log, log)
GQA_LIBRARY(sine, sin)
GQA_LIBRARY(cosine, cos)
#undef GQA_LIBRARY
GQA_INLINE float power_of(float x, float y) { return ::powf(x, y); }
GQA_INLINE double power_of(double x, double y) { return ::pow(x, y); }
GQA_INLINE float remainder_of(float x, float y) { return ::fmodf(x, y); }
GQA_INLINE double remainder_of(double x, double y) { return ::fmod(x, y); }
GQA_INLINE float with_sign_of(float x, float y) { return __builtin_copysignf(x, y); }
GQA_INLINE double with_sign_of(double x, double y) { return __builtin_copysign(x, y); }
GQA_INLINE float floor_of(float x) { return ::floorf(x); }
GQA_INLINE double floor_of(double x) { return ::floor(x); }

// numpy.remainder and numpy.floor_divide.
template <class T> GQA_INLINE T floor_modulo_of(T x, T y) {
  const T rest = remainder_of(x, y);
  if (rest == 0) return with_sign_of(T(0), y);
  return (y < 0) != (rest < 0) ? rest + y : rest;
}
template <class T> GQA_INLINE T floor_divide_of(T x, T y) {
  if (y == 0) return x / y;
  T rest = remainder_of(x, y), quotient = (x - rest) / y;
  if (rest != 0 && (y < 0) != (rest < 0)) quotient -= 1;
  if (quotient == 0) return with_sign_of(T(0), x / y);
  const T down = floor_of(quotient);
  return quotient - down > T(0.5) ? down + 1 : down;
}

// a * 2^n for whole n from -252 to 254, in two steps, so that results may be subnormal or infinite.
GQA_INLINE Vec<float> scale_by_power(Vec<float> a, Whole<float> n) {
  const Whole<float> half = n >> 1, rest = n - half;
  return a * bits<Vec<float>>((half + 127) << 23) * bits<Vec<float>>((rest + 127) << 23);
}
GQA_INLINE Vec<float> nearest(Vec<float> x) { return (x + 0x1.8p23f) - 0x1.8p23f; }  // for |x| < 2^22
// x within [low, high]; NaN stays NaN.
GQA_INLINE Vec<float> clamped(Vec<float> x, float low, float high) {
  const Vec<float> y = x < low ? splat(low) : x;
  return y > high ? splat(high) : y;
}

template <class T> GQA_INLINE Vec<T> exponential(Vec<T> x) {
  return each_lane<T>(x, [](T y) { return exp_of(y); });
}
template <> GQA_INLINE Vec<float> exponential<float>(Vec<float> x) {
  static constexpr float c[] = {5.0000001201e-1f, 1.6666665459e-1f, 4.1665795894e-2f,
                                8.3334519073e-3f, 1.3981999507e-3f, 1.9875691500e-4f};
  x = clamped(x, -105.0f, 89.0f);
  const Vec<float> n = nearest(x * 1.44269504f), r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  return scale_by_power(polynomial<float>(r, c) * (r * r) + r + 1.0f, to_whole<float>(n));
}

template <class T> GQA_INLINE Vec<T> power_of_two(Vec<T> x) {
  return each_lane<T>(x, [](T y) { return exp2_of(y); });
}
template <> GQA_INLINE Vec<float> power_of_two<float>(Vec<float> x) {
  static constexpr float c[] = {6.931472028550421e-1f, 2.402264791363012e-1f, 5.550332471162809e-2f,
                                9.618437357674640e-3f, 1.339887440266574e-3f, 1.535336188319500e-4f};
  x = clamped(x, -151.0f, 129.0f);
  const Vec<float> n = nearest(x), f = x - n;
  return scale_by_power(polynomial<float>(f, c) * f + 1.0f, to_whole<float>(n));
}

template <class T> GQA_INLINE Vec<T> logarithm(Vec<T> x) {
  return each_lane<T>(x, [](T y) { return log_of(y); });
}
template <> GQA_INLINE Vec<float> logarithm<float>(Vec<float> x) {
  static constexpr float c[] = {3.3333331174e-1f,  -2.4999993993e-1f, 2.0000714765e-1f,
                                -1.6668057665e-1f, 1.4249322787e-1f,  -1.2420140846e-1f,
                                1.1676998740e-1f,  -1.1514610310e-1f, 7.0376836292e-2f};
  const Whole<float> subnormal = bits<Whole<float>>(x < 0x1p-126f);
  const Whole<float> i = bits<Whole<float>>(subnormal ? x * 0x1p23f : x);
  // The mantissa in [sqrt(1/2), sqrt(2)), and the exponent that belongs to it.
  const Whole<float> from_root = i - 0x3f3504f3, exponent = (from_root >> 23) - (subnormal & 23);
  const Vec<float> m = bits<Vec<float>>((from_root & 0x7fffff) + 0x3f3504f3) - 1.0f, e = to_real<float>(exponent);
  const Vec<float> square = m * m;
  const Vec<float> y = polynomial<float>(m, c) * m * square + e * -2.12194440e-4f - square * 0.5f;
  const Vec<float> result = m + y + e * 0.693359375f;
  const float infinite = __builtin_inff();
  const Vec<float> of_positive = x == infinite ? x : result;
  const Vec<float> of_negative = x == 0.0f ? splat(-infinite) : splat(__builtin_nanf(""));
  return x > 0.0f ? of_positive : of_negative;
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
