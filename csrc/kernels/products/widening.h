// products/widening.h: products in float or double. Rows of K and V are read where they lie, in their own type, and
// widened in registers; for double, types other than double are widened into scratch first.
#pragma once

#include "queries.h"
#include "streams.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// s[step][stream][row] = k . q. q: R rows, `stride` apart, padded with zeros to whole vectors.
template <class T, class S, int R>
void multiply_keys(const T* q, int64_t stride, int head_dim, const Streams<streams<T, R>>& keys,
                   const StreamRows<streams<T, R>>& k, T* s) {
  constexpr int w = width<T>, count = streams<T, R>;
  const Ahead ahead = rows_ahead<S, R>(head_dim, keys.total());
  for (int t = 0; t < keys.steps; t++, s += w) {
    const S *row[count], *next[count], *beyond[count];
    k.at(t, row);
    k.at(t, next, ahead.l1);
    k.at(t, beyond, ahead.l2);
    Vec<T> sum[w] = {};
    each_line<T, S>(
        head_dim,
        [&](int d) __attribute__((always_inline)) {
#pragma GCC unroll 16
          for (int i = 0; i < count; i++) prefetch(next[i] + d);
          if (!far<S, R>(ahead)) return;
#pragma GCC unroll 16
          for (int i = 0; i < count; i++) prefetch_to_l2(beyond[i] + d);
        },
        [&](int d, int n) __attribute__((always_inline)) {
          Vec<T> x[count];
#pragma GCC unroll 16
          for (int i = 0; i < count; i++) x[i] = load_row<T, S>(row[i] + d, n);
#pragma GCC unroll 4
          for (int r = 0; r < R; r++) {
            Vec<T> y = load(q + r * stride + d);
            if (loads_in_one_instruction<T, S>) y = in_register(y);
#pragma GCC unroll 16
            for (int i = 0; i < count; i++) sum[i * R + r] += x[i] * y;
          }
        });
    store(s, sums<T>(sum));
  }
}

// U steps of o += p . v at once.
template <class T, class S, int R, int U>
GQA_INLINE void add_steps(T* o, int64_t stride, int channels, const StreamRows<streams<T, R>>& v, const T* p, int t,
                          Ahead ahead) {
  constexpr int w = width<T>, count = streams<T, R>;
  const S *row[U][count], *next[U][count], *beyond[U][count];
  Vec<T> weight[U][w];
#pragma GCC unroll 2
  for (int u = 0; u < U; u++) {
    v.at(t + u, row[u]);
    v.at(t + u, next[u], ahead.l1);
    v.at(t + u, beyond[u], ahead.l2);
#pragma GCC unroll 16
    for (int i = 0; i < w; i++) weight[u][i] = splat(p[(t + u) * w + i]);
  }
  each_line<T, S>(
      channels,
      [&](int c) __attribute__((always_inline)) {
#pragma GCC unroll 2
        for (int u = 0; u < U; u++)
#pragma GCC unroll 16
          for (int i = 0; i < count; i++) prefetch(next[u][i] + c);
        if (!far<S, R>(ahead)) return;
#pragma GCC unroll 2
        for (int u = 0; u < U; u++)
#pragma GCC unroll 16
          for (int i = 0; i < count; i++) prefetch_to_l2(beyond[u][i] + c);
      },
      [&](int c, int n) __attribute__((always_inline)) {
        Vec<T> x[U][count];
#pragma GCC unroll 2
        for (int u = 0; u < U; u++)
#pragma GCC unroll 16
          for (int i = 0; i < count; i++) x[u][i] = load_row<T, S>(row[u][i] + c, n);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          Vec<T> sum = load(o + r * stride + c);
#pragma GCC unroll 2
          for (int u = 0; u < U; u++)
#pragma GCC unroll 16
            for (int i = 0; i < count; i++) sum += x[u][i] * weight[u][i * R + r];
          store(o + r * stride + c, sum);
        }
      });
}

// The same for steps [from, to) and V vectors of channels from c on, n elements of the last, with the sums in
// registers.
template <class T, class S, int R, int V>
GQA_INLINE void add_to_registers(T* o, int64_t stride, int c, int n, const StreamRows<streams<T, R>>& v, const T* p,
                                 int from, int to, Ahead ahead) {
  constexpr int w = width<T>, count = streams<T, R>;
  Vec<T> sum[R][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) sum[r][j] = load(o + r * stride + c + j * w);
  const char* const* rows = v.rows();
  for (int i = from * count; i < to * count; i++) {
    const S* row = reinterpret_cast<const S*>(rows[i]) + c;
    const S* next = reinterpret_cast<const S*>(rows[i + ahead.l1]) + c;
    const S* beyond = reinterpret_cast<const S*>(rows[i + ahead.l2]) + c;
    Vec<T> weight[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) weight[r] = splat(p[i * R + r]);
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) {
      if (j * w * int(sizeof(S)) % cache_line == 0) {
        prefetch(next + j * w);
        if (far<S, R>(ahead)) prefetch_to_l2(beyond + j * w);
      }
      const Vec<T> x = V > 1 ? load_as<T, S>(row + j * w) : load_row<T, S>(row, n);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) sum[r][j] += x * weight[r];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) store(o + r * stride + c + j * w, sum[r][j]);
}

// Some steps at a time, for one chunk of channels after another.
template <class T, class S, int R>
void add_values_in_registers(T* o, int64_t stride, int channels, const Streams<streams<T, R>>& keys,
                             const StreamRows<streams<T, R>>& v, const T* p) {
  constexpr int w = width<T>, vectors = vectors_in_registers<R>;
  const Ahead ahead = rows_ahead<S, R>(channels, keys.total());
  const int at_once = channels <= vectors * w ? keys.steps : keys_between_chunks / streams<T, R>;
  for (int t = 0; t < keys.steps; t += at_once) {
    const int end = int(min(t + at_once, keys.steps));
    int c = 0;
    for (; c + vectors * w <= channels; c += vectors * w)
      add_to_registers<T, S, R, vectors>(o, stride, c, w, v, p, t, end, ahead);
    for (; c + 4 * w <= channels; c += 4 * w) add_to_registers<T, S, R, 4>(o, stride, c, w, v, p, t, end, ahead);
    for (; c < channels; c += w)
      add_to_registers<T, S, R, 1>(o, stride, c, int(min(w, channels - c)), v, p, t, end, ahead);
  }
}

// o += p . v, with p[step][stream][row]. o: R rows of whole vectors, `stride` apart.
template <class T, class S, int R>
void add_values(T* o, int64_t stride, int channels, const Streams<streams<T, R>>& keys,
                const StreamRows<streams<T, R>>& v, const T* p) {
  if constexpr (sums_in_registers<T, R>) return add_values_in_registers<T, S, R>(o, stride, channels, keys, v, p);
  constexpr int at_once = streams<T, R> <= 2 ? 2 : 1;  // fewer loads and stores of o, where it is stored most often
  const Ahead ahead = rows_ahead<S, R>(channels, keys.total());
  int t = 0;
  for (; t + at_once <= keys.steps; t += at_once) add_steps<T, S, R, at_once>(o, stride, channels, v, p, t, ahead);
  for (; t < keys.steps; t++) add_steps<T, S, R, 1>(o, stride, channels, v, p, t, ahead);
}

// The same, leaving out keys of weight 0, whose values may be NaN or infinite.
template <class T, class S, int R>
void add_values_selecting(T* o, int64_t stride, int channels, const Streams<streams<T, R>>& keys,
                          const StreamRows<streams<T, R>>& v, const T* p) {
  constexpr int w = width<T>, count = streams<T, R>;
  for (int t = 0; t < keys.steps; t++, p += w) {
    const S* row[count];
    v.at(t, row);
    for (int i = 0; i < w; i++) {
      if (p[i] == 0) continue;
      T* to = o + i % R * stride;
      for (int c = 0; c < channels; c += w) {
        const Vec<T> x =
            channels - c >= w ? load_as<T, S>(row[i / R] + c) : load_as<T, S>(row[i / R] + c, channels - c);
        store(to + c, load(to + c) + x * p[i]);
      }
    }
  }
}

template <class T> class Widening {
 public:
  struct Buffers {
    Buffers(const TaskShape& shape, int block_keys, Scratch& scratch)
        : k(scratch.take<double>(sizeof(T) == 8 ? block_keys * shape.head_dim : 0)),
          v(scratch.take<double>(sizeof(T) == 8 ? block_keys * shape.v_head_dim : 0)) {}

    double *const k, *const v;
  };

  Widening(const Attention& a, const QueryRows<T>& q, const Buffers& buffers)
      : q_(q), head_dim_(int(a.head_dim)), v_head_dim_(int(a.v_head_dim)), buffers_(buffers) {}

  void prepare_block(KeyBlock& block) const {
    if constexpr (sizeof(T) == 8) {
      widen_rows(block.k, block.k_scale, block.count, block.k_type, head_dim_, buffers_.k);
      widen_rows(block.v, block.v_scale, block.count, block.v_type, v_head_dim_, buffers_.v);
      block.k_type = block.v_type = DType::f64;
    }
  }

  template <int R>
  void scores(int r, const KeyBlock& block, int from, const Streams<streams<T, R>>& keys,
              const StreamRows<streams<T, R>>& rows, T* s) const {
    with_direct_type(block.k_type, [&](auto type) {
      multiply_keys<T, decltype(type), R>(q_.row(r), q_.stride, head_dim_, keys, rows, s);
    });
    if (block.k_type == DType::i8) multiply_scales<T, R, false>(block.k_scale + from, keys, s);
  }

  // p has the scales in it.
  template <int R>
  void accumulate(const KeyBlock& block, const Streams<streams<T, R>>& keys, const StreamRows<streams<T, R>>& rows,
                  bool select, const T* p, T* o, int64_t stride) const {
    with_direct_type(block.v_type, [&](auto type) {
      const auto add_to = select ? add_values_selecting<T, decltype(type), R> : add_values<T, decltype(type), R>;
      add_to(o, stride, v_head_dim_, keys, rows, p);
    });
  }

 private:
  // The types that the products read: for double there is one, since prepare_block widens the others.
  template <class F> static void with_direct_type(DType type, F f) {
    if constexpr (sizeof(T) == 8) f(double());
    else if (type == DType::i8) f(int8_t());
    else if (type == DType::f16) f(f16());
    else if (type == DType::bf16) f(bf16());
    else f(float());
  }

  static void widen_rows(const char** rows, const float* scales, int count, DType type, int channels, double* to) {
    if (type == DType::f64) return;
    with_cache_type(type, [&](auto s) {
      using S = decltype(s);
      for (int j = 0; j < count; j++, to += channels) {
        const double scale = type == DType::i8 ? scales[j] : 1;
        for (int c = 0; c < channels; c++) to[c] = convert<double>(read<S>(rows[j] + c * sizeof(S))) * scale;
        rows[j] = reinterpret_cast<const char*>(to);
      }
    });
  }

  const QueryRows<T>& q_;
  const int head_dim_, v_head_dim_;
  const Buffers& buffers_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
