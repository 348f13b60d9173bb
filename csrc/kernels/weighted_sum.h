// weighted_sum.h: a row of merged states: rows of any types, each times its weight, added up in double and rounded
// once.
#pragma once

#include "keys.h"
#include "vec.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Channels at once: their sums stay in registers while the rows are added.
constexpr int sum_vectors = 8, sum_channels = sum_vectors * width<double>;

// A float's worth of lanes is two vectors of double.
typedef float HalfOfFloats __attribute__((vector_size(vector_bytes / 2)));
struct TwoHalves {
  HalfOfFloats low, high;
};

template <class S> GQA_INLINE void load_doubles(const S* p, Vec<double>& low, Vec<double>& high) {
  const TwoHalves halves = bits<TwoHalves>(load_as<float, S>(p));
  low = __builtin_convertvector(halves.low, Vec<double>);
  high = __builtin_convertvector(halves.high, Vec<double>);
}
template <> GQA_INLINE void load_doubles<double>(const double* p, Vec<double>& low, Vec<double>& high) {
  low = load(p), high = load(p + width<double>);
}

// To float, from where it is rounded to S: for half precision to odd, which keeps what decides the second rounding.
template <class S> GQA_INLINE HalfOfFloats to_floats(Vec<double> x) {
  if constexpr (sizeof(S) == 2) {
    typedef uint64_t Wide __attribute__((vector_size(vector_bytes)));
    constexpr uint64_t dropped = (uint64_t(1) << 29) - 1;  // bits that float has no room for
    const Wide u = bits<Wide>(x), inexact = ((u & dropped) + dropped) & (dropped + 1), odd = (u & ~dropped) | inexact;
    x = bits<Vec<double>>(x == x ? odd : u);
  }
  return __builtin_convertvector(x, HalfOfFloats);
}
template <class S> GQA_INLINE void store_doubles(S* p, Vec<double> low, Vec<double> high) {
  store_as<S, float>(p, bits<Vec<float>>(TwoHalves{to_floats<S>(low), to_floats<S>(high)}));
}
template <> GQA_INLINE void store_doubles<double>(double* p, Vec<double> low, Vec<double> high) {
  store(p, low), store(p + width<double>, high);
}

// Channels [first, first + n) of a row: where they lie, or side by side in `room`, followed by zeros.
template <class S> GQA_INLINE const S* channels_of(const char* row, int64_t stride, int64_t first, int n, S* room) {
  if (n == sum_channels && stride == int64_t(sizeof(S))) return reinterpret_cast<const S*>(row) + first;
  for (int c = 0; c < sum_channels; c++) {
    if (c < n) room[c] = read<S>(row + (first + c) * stride);
    else memset(room + c, 0, sizeof(S));
  }
  return room;
}

template <class S> GQA_INLINE void add_row(Vec<double> (&sum)[sum_vectors], const S* x, double weight) {
#pragma GCC unroll 8
  for (int v = 0; v < sum_vectors; v += 2) {
    Vec<double> low, high;
    load_doubles<S>(x + v * width<double>, low, high);
    sum[v] += low * weight;
    sum[v + 1] += high * weight;
  }
}

void add_weighted(const WeightedSum& s) {
  for (int64_t first = 0; first < s.channels; first += sum_channels) {
    const int n = int(min(sum_channels, s.channels - first));
    Vec<double> sum[sum_vectors];
    for (Vec<double>& x : sum) x = splat(s.count > 0 ? -0.0 : 0.0);  // the sum of -0 alone is -0
    for (int64_t i = 0; i < s.count; i++) {
      const WeightedRow& term = s.rows[i];
      with_cache_type(term.type, [&](auto type) {
        using S = decltype(type);
        S room[sum_channels];
        add_row<S>(sum, channels_of<S>(term.row, term.channel_stride, first, n, room), term.weight);
      });
    }
    with_float_type(s.out_type, [&](auto type) {
      using S = decltype(type);
      S rounded[sum_channels];
      for (int v = 0; v < sum_vectors; v += 2)
        store_doubles<S>(rounded + v * width<double>, sum[v] / s.divisor, sum[v + 1] / s.divisor);
      char* const to = s.out + first * s.out_channel_stride;
      if (s.out_channel_stride == int64_t(sizeof(S))) memcpy(to, rounded, size_t(n) * sizeof(S));
      else
        for (int c = 0; c < n; c++) write(to + c * s.out_channel_stride, rounded[c]);
    });
  }
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
