// products/integers.h: the product Q.K for keys of int8, as a product of integers.
//
// q is rounded to 16 bits; products and their sums are exact. That takes a half to three quarters of the time of
// widening keys to float. (For P.V it would save nothing: the weights have to be rounded and two keys interleaved.)
// The error of a logit is a sum of rounding errors of q, each up to half a unit, times the channels of the key: about
// unit * |k| / sqrt(12). Where logits are small it averages out over many keys; where they are large, a few keys have
// all the weight and it does not. So integers serve for no fewer than `keys_for_integers` keys, and for a block only if
// the error of its logits is expected to be no more than `logit_error`; the others are widened.
#pragma once

#include "queries.h"
#include "streams.h"

namespace gqa {
namespace GQA_ISA {
namespace {

constexpr int64_t keys_for_integers = 512, max_channels_for_integers = 512;  // so that sums fit into 32 bits
constexpr float logit_error = 8e-5f;                                         // in base 2
constexpr float max_int16 = 32767;

// The whole number nearest to each x, |x| <= 2^22.
GQA_INLINE Vec<int32_t> rounded(Vec<float> x) {
  constexpr float shift = 0x1.8p23f;
  return bits<Vec<int32_t>>(x + shift) - bits<int32_t>(shift);
}
GQA_INLINE Vec<float> to_floats(Vec<int32_t> x) { return __builtin_convertvector(x, Vec<float>); }

// Rows of q as integers: each row's numbers are to be multiplied with its `unit`.
struct RoundedRows {
  static constexpr int w = width<float>;

  int64_t stride;  // whole loads of pairs: q is padded with zeros
  int16_t* q;
  float* unit;

  RoundedRows(int64_t rows, int64_t head_dim, Scratch& scratch)
      : stride((head_dim + 2 * w - 1) / (2 * w) * (2 * w)),
        q(scratch.take<int16_t>(rows * stride)),
        unit(scratch.take<float>(rows)) {}

  // Row r from `channels` floats, whole vectors. The unit of a row that is not finite is NaN.
  void round(int64_t r, const float* from, int64_t channels) const {
    Vec<float> top{}, poison{};
    for (int64_t d = 0; d < channels; d += w) {
      const Vec<float> x = load(from + d);
      top = max(max(x, -x), top);
      poison += x * 0.0f;
    }
    top = fold<float, 1>(top, [](Vec<float> x, Vec<float> y) { return max(x, y); });
    poison = fold<float, 1>(poison, [](Vec<float> x, Vec<float> y) { return x + y; });
    const float inverse = poison[0] == 0 && top[0] > 1e-30f ? max_int16 / top[0] : 0;
    memset(q + r * stride, 0, size_t(stride) * sizeof(int16_t));
    for (int64_t d = 0; d < channels; d += w) {
      const Vec<int32_t> x = rounded(load(from + d) * inverse);
      for (int l = 0; l < w; l++) q[r * stride + d + l] = int16_t(x[l]);
    }
    unit[r] = top[0] / max_int16 + poison[0];
  }
};

// s[step][stream][row] = k . q for the rows from `first` on.
template <int R>
void multiply_keys(const RoundedRows& rows, int first, int head_dim, const Streams<streams<float, R>>& keys,
                   const StreamRows<streams<float, R>>& k, float* s) {
  const int16_t* q = rows.q + first * rows.stride;
  Vec<float> unit;
  for (int l = 0; l < width<float>; l++) unit[l] = rows.unit[first + l % R];
  constexpr int w = width<float>, count = streams<float, R>;
  for (int t = 0; t < keys.steps; t++, s += w) {
    const int8_t* row[count];
    k.at(t, row);
    Vec<int32_t> sum[w] = {};
    auto add = [&](int d, const Vec<int32_t>(&x)[count]) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const Vec<int32_t> y = in_register(read<Vec<int32_t>>(q + r * rows.stride + d));
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) sum[i * R + r] += multiply_pairs(x[i], y);
      }
    };
    Vec<int32_t> x[count];
    int d = 0;
    for (; d + 2 * w <= head_dim; d += 2 * w) {
#pragma GCC unroll 16
      for (int i = 0; i < count; i++) x[i] = load_pairs(row[i] + d);
      add(d, x);
    }
    if (d < head_dim) {
      for (int i = 0; i < count; i++) {
        int8_t tail[2 * w] = {};
        memcpy(tail, row[i] + d, size_t(head_dim - d));
        x[i] = load_pairs(tail);
      }
      add(d, x);
    }
    store(s, to_floats(sums<int32_t>(sum)) * unit);
  }
}

class Integers {
 public:
  using Buffers = RoundedRows;

  Integers(const Attention& a, const QueryRows<float>& q, const Buffers& rounded)
      : q_(q), head_dim_(int(a.head_dim)), rounded_(rounded) {}

  // Whether keys of int8 may be multiplied as integers by rows that attend so many of them.
  bool worth_it(int64_t keys) const { return keys >= keys_for_integers && head_dim_ <= max_channels_for_integers; }

  void prepare_queries() {
    if (prepared_) return;
    for (int64_t r = 0; r < q_.rows; r++) rounded_.round(r, q_.row(r), q_.stride);
    prepared_ = true;
  }

  // Whether the logits of R rows from r on with n keys are expected to be precise. NaN is none of its business.
  template <int R> bool precise(int r, const float* scales, int n) const {
    // A row of int8 whose largest channel is 127 has others of about a third of that: |k| is about 42 * sqrt(head_dim).
    const float k = 42.0f / 3.4641f * sqrt_of(float(head_dim_));
    constexpr int w = width<float>;
    float unit = 0;
    for (int i = 0; i < R; i++) unit = rounded_.unit[r + i] > unit ? rounded_.unit[r + i] : unit;
    Vec<float> scale{};
    for (int j = 0; j < n; j += w) scale = max(load_row<float, float>(scales + j, n - j), scale);
    scale = fold<float, 1>(scale, [](Vec<float> x, Vec<float> y) { return max(x, y); });
    return unit * scale[0] * k <= logit_error;
  }

  template <int R>
  void scores(int r, const KeyBlock& block, int from, const Streams<streams<float, R>>& keys,
              const StreamRows<streams<float, R>>& rows, float* s) const {
    multiply_keys<R>(rounded_, r, head_dim_, keys, rows, s);
    multiply_scales<float, R, false>(block.k_scale + from, keys, s);
  }

 private:
  const QueryRows<float>& q_;
  const int head_dim_;
  const RoundedRows& rounded_;
  bool prepared_ = false;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
