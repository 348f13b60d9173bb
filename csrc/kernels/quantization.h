// quantization.h: a row of floats as int8 with one scale.
#pragma once

#include "../quantization.h"
#include "keys.h"
#include "shuffle.h"

namespace gqa {
namespace GQA_ISA {
namespace {

constexpr float least_scale = 0x1p-126f, most_scale = 3.402823466e38f;

// Whole numbers up to 2^22 in magnitude, ties to even.
template <class T> GQA_INLINE Vec<T> rounded(Vec<T> x) {
  constexpr T shift = sizeof(T) == 8 ? T(0x1.8p52) : T(0x1.8p23);
  return (x + shift) - shift;
}

template <class T, class S> bool quantize_row(const RowQuantization& row) {
  constexpr int w = width<T>;
  const S* const from = reinterpret_cast<const S*>(row.from);
  Vec<T> top{}, poison{};  // poison: 0, or NaN once a value was not finite
  for (int64_t c = 0; c < row.channels; c += w) {
    const Vec<T> x = load_row<T, S>(from + c, row.channels - c);
    top = max(max(x, -x), top);
    poison += x * T(0);
  }
  const T most = fold<T, 1>(top, [](Vec<T> a, Vec<T> b) { return max(a, b); })[0] / T(127);
  const bool finite = fold<T, 1>(poison, [](Vec<T> a, Vec<T> b) { return a + b; })[0] == 0;
  if (!finite || !(most <= T(most_scale))) return false;
  const float scale = most > T(least_scale) ? float(most) : least_scale;
  write(row.scale, scale);
  for (int64_t c = 0; c < row.channels; c += w) {
    const int64_t n = min(w, row.channels - c);
    typedef int8_t Bytes __attribute__((vector_size(w)));
    const Vec<T> x = load_row<T, S>(from + c, n);
    const Bytes bytes = __builtin_convertvector(rounded<T>(x / T(scale)), Bytes);
    memcpy(row.data + c, &bytes, size_t(n));
  }
  return true;
}

// False if the row holds NaN, infinity or values too large for a scale.
bool quantize(const RowQuantization& row) {
  bool done = false;
  with_float_type(row.from_type, [&](auto type) {
    using S = decltype(type);
    done = quantize_row<std::conditional_t<sizeof(S) == 8, double, float>, S>(row);
  });
  return done;
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
