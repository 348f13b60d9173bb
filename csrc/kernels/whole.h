// whole.h: whole numbers and truth values in lanes as wide as a float type T: what score programs do with positions.
//
// Arithmetic wraps. A truth value is all bits, or none.
#pragma once

#include "vec.h"

namespace gqa {
namespace GQA_ISA {
namespace {

template <class T> using Whole = Vec<Int<T>>;
template <int bytes> struct UnsignedOf {
  using type = uint32_t;
};
template <> struct UnsignedOf<8> {
  using type = uint64_t;
};
template <class T> using Unsigned = Vec<typename UnsignedOf<sizeof(T)>::type>;  // where an overflow wraps

template <class T> constexpr int whole_bits = 8 * int(sizeof(T));
template <class T> constexpr Int<T> largest_whole = Int<T>(sizeof(T) == 8 ? INT64_MAX : INT32_MAX);
template <class T> constexpr Int<T> smallest_whole = -largest_whole<T> - 1;

// The number nearest to n that a lane holds.
template <class T> GQA_INLINE Int<T> nearest_whole(int64_t n) {
  return n > largest_whole<T> ? largest_whole<T> : n < smallest_whole<T> ? smallest_whole<T> : Int<T>(n);
}
template <class T> GQA_INLINE Whole<T> splat_whole(Int<T> x) { return x - Whole<T>{}; }

template <class T> GQA_INLINE Whole<T> add_wholes(Whole<T> x, Whole<T> y) {
  return bits<Whole<T>>(bits<Unsigned<T>>(x) + bits<Unsigned<T>>(y));
}
template <class T> GQA_INLINE Whole<T> subtract_wholes(Whole<T> x, Whole<T> y) {
  return bits<Whole<T>>(bits<Unsigned<T>>(x) - bits<Unsigned<T>>(y));
}
template <class T> GQA_INLINE Whole<T> multiply_wholes(Whole<T> x, Whole<T> y) {
  return bits<Whole<T>>(bits<Unsigned<T>>(x) * bits<Unsigned<T>>(y));
}
template <class T> GQA_INLINE Whole<T> smaller(Whole<T> x, Whole<T> y) { return x < y ? x : y; }
template <class T> GQA_INLINE Whole<T> larger(Whole<T> x, Whole<T> y) { return x > y ? x : y; }

// Rounds down; 0 for a division by 0. In double, where the quotient of numbers of 32 bits rounds to a whole number only
// if it is one.
GQA_INLINE Whole<float> floor_divide(Whole<float> x, Whole<float> y) {
  const Whole<float> divisor = ((y == 0) | (y == -1)) ? Whole<float>{} + 1 : y;
  int32_t dividends[width<float>], divisors[width<float>];
  write(dividends, x), write(divisors, divisor);
  for (int l = 0; l < width<float>; l++) dividends[l] = int32_t(double(dividends[l]) / double(divisors[l]));
  const Whole<float> truncated = read<Whole<float>>(dividends);
  const Whole<float> rest = subtract_wholes<float>(x, multiply_wholes<float>(truncated, divisor));
  const Whole<float> down = truncated + ((rest != 0) & ((rest ^ divisor) < 0));
  return y == 0 ? Whole<float>{} : y == -1 ? subtract_wholes<float>(Whole<float>{}, x) : down;
}
GQA_INLINE Whole<double> floor_divide(Whole<double> x, Whole<double> y) {
  for (int l = 0; l < width<double>; l++) {
    const int64_t a = x[l], b = y[l];
    x[l] = b == 0 ? 0 : b == -1 ? int64_t(0 - uint64_t(a)) : a / b - (a % b != 0 && (a % b ^ b) < 0);
  }
  return x;
}
// What is left, with the sign of y; 0 for a division by 0.
template <class T> GQA_INLINE Whole<T> floor_modulo(Whole<T> x, Whole<T> y) {
  const Whole<T> rest = subtract_wholes<T>(x, multiply_wholes<T>(floor_divide(x, y), y));
  return y == 0 ? Whole<T>{} : rest;
}

// By 0 places at least; beyond the width nothing is left but the sign.
template <class T> GQA_INLINE Whole<T> shift_left(Whole<T> x, Whole<T> places) {
  const Whole<T> n = larger<T>(smaller<T>(places, splat_whole<T>(whole_bits<T> - 1)), Whole<T>{});
  const Whole<T> shifted = bits<Whole<T>>(bits<Unsigned<T>>(x) << bits<Unsigned<T>>(n));
  return places >= whole_bits<T> ? Whole<T>{} : shifted;
}
template <class T> GQA_INLINE Whole<T> shift_right(Whole<T> x, Whole<T> places) {
  return x >> larger<T>(smaller<T>(places, splat_whole<T>(whole_bits<T> - 1)), Whole<T>{});
}

template <class T> GQA_INLINE Vec<T> to_real(Whole<T> x) { return __builtin_convertvector(x, Vec<T>); }
// Towards 0; the nearest that a lane holds, 0 for NaN.
template <class T> GQA_INLINE Whole<T> to_whole(Vec<T> x) {
  constexpr T limit = T(sizeof(T) == 8 ? 0x1p63 : 0x1p31);
  const Whole<T> below = bits<Whole<T>>(x < limit), above = bits<Whole<T>>(x >= -limit);
  const Whole<T> inside = __builtin_convertvector(below & above ? x : Vec<T>{}, Whole<T>);
  const Whole<T> high = x >= limit ? splat_whole<T>(largest_whole<T>) : inside;
  return x < -limit ? splat_whole<T>(smallest_whole<T>) : high;
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
