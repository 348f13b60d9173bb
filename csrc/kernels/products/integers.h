// products/integers.h: products for keys and values of int8, as products of integers.
//
// Q.K: q is rounded to 16 bits; products and their sums are exact. That takes a half to three quarters of the time of
// widening keys to float. P.V: only by instructions for it (vnni.cpp); by others it would save nothing, since the
// weights have to be rounded and keys interleaved.
// The error of a logit is a sum of rounding errors of q, each up to half a unit, times the channels of the key: about
// unit * |k| / sqrt(12). Where logits are small it averages out over many keys; where they are large, a few keys have
// all the weight and it does not. So integers serve for no fewer than `keys_for_integers` keys, and for a block only if
// the error of its logits is expected to be no more than `logit_error`; the others are widened.
#pragma once

#include "integer_products.h"
#include "queries.h"
#include "streams.h"

namespace gqa {
namespace GQA_ISA {
namespace {

constexpr int64_t keys_for_integers = 512, max_channels_for_integers = 512;  // so that sums fit into 32 bits
constexpr float logit_error = 8e-5f;                                         // in base 2
constexpr float max_int16 = 32767;
constexpr int values_for_integers = 64;  // fewer are not worth the sums' beginning and end

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

// s[step][stream][row] = unit[row] * (k . q), with q[row][channel], rows `stride` apart.
template <int R>
void multiply_keys(const int16_t* q, int64_t stride, const float* units, int head_dim, const char* const* rows,
                   int steps, float* s) {
  constexpr int w = width<float>, count = streams<float, R>;
  const Ahead ahead = rows_ahead<int8_t, R>(head_dim, steps * count);
  Vec<float> unit;
  for (int l = 0; l < w; l++) unit[l] = units[l % R];
  for (int t = 0; t < steps; t++, s += w, rows += count) {
    Vec<int32_t> sum[w] = {};
    auto add = [&](int d, const Vec<int32_t>(&x)[count]) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const Vec<int32_t> y = in_register(read<Vec<int32_t>>(q + r * stride + d));
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) sum[i * R + r] = add_pairs(sum[i * R + r], x[i], y);
      }
    };
    Vec<int32_t> x[count];
    int d = 0;
    for (; d + 2 * w <= head_dim; d += 2 * w) {
      if (d % cache_line == 0) {
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) prefetch(rows[i + ahead.l1] + d);
        if (far<int8_t, R>(ahead)) {
#pragma GCC unroll 16
          for (int i = 0; i < count; i++) prefetch_to_l2(rows[i + ahead.l2] + d);
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < count; i++) x[i] = load_pairs(reinterpret_cast<const int8_t*>(rows[i]) + d);
      add(d, x);
    }
    if (d < head_dim) {
      for (int i = 0; i < count; i++) {
        int8_t tail[2 * w] = {};
        memcpy(tail, rows[i] + d, size_t(head_dim - d));
        x[i] = load_pairs(tail);
      }
      add(d, x);
    }
    store(s, to_floats(sums<int32_t>(sum)) * unit);
  }
}

class Integers {
 public:
  struct Buffers {
    Buffers(int64_t rows, const TaskShape& shape, Scratch& scratch)
        : q(rows, shape.head_dim, scratch), products(scratch.take<char>(products_bytes(shape))) {}

    const RoundedRows q;
    char* const products;  // what the products of the processor's own need

   private:
    static int64_t products_bytes(const TaskShape& shape) {
      return shape.integers ? shape.integers->scratch_bytes(shape.v_head_dim, channels_block) : 0;
    }
  };

  Integers(const Attention& a, const IntegerProducts* products, const QueryRows<float>& q, const Buffers& buffers)
      : q_(q),
        head_dim_(int(a.head_dim)),
        v_head_dim_(int(a.v_head_dim)),
        products_(products),
        rounded_(buffers.q),
        scratch_(buffers.products) {}

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
    const auto multiply = products_ ? products_->scores[table_entry(R)] : multiply_keys<R>;
    multiply(rounded_.q + r * rounded_.stride, rounded_.stride, rounded_.unit + r, head_dim_, rows.rows(), keys.steps,
             s);
    multiply_scales<float, R, false>(block.k_scale + from, keys, s);
  }

  // o += p . v, p with the scales in it. Returns false, and has done nothing, where that is not to be had.
  template <int R>
  bool accumulate(const Streams<streams<float, R>>& keys, const StreamRows<streams<float, R>>& rows, const float* p,
                  float* o, int64_t stride) const {
    return products_ && keys.total() >= values_for_integers &&
           products_->accumulate[table_entry(R)](rows.rows(), keys.steps * streams<float, R>, v_head_dim_, p, o, stride,
                                                 scratch_);
  }

 private:
  const QueryRows<float>& q_;
  const int head_dim_, v_head_dim_;
  const IntegerProducts* const products_;
  const RoundedRows& rounded_;
  char* const scratch_;
  bool prepared_ = false;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
