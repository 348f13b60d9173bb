// products.h: the two products of attention with channels in the lanes, for a group of R rows that share each load.
//
// Rows of K and V are read where they lie and widened in registers. The keys of a block are taken as several streams,
// far apart, advancing together: memory serves a few sequential streams faster than one, and a step has more
// independent sums.
#pragma once

#include "keys.h"
#include "shuffle.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Lanes of stream i from the second vector, the others from the first.
template <int w, int rows, int i> struct OfStream {
  static constexpr int at(int l) { return l / rows == i ? w + l : l; }
};

// n keys dealt to `count` streams: stream i has the keys from first[i] to first[i + 1], in as many steps. Few streams
// take turns between the two halves of their keys, so that memory sees at least two more.
template <int count> struct Streams {
  static constexpr int halves = count <= 2 ? 2 : 1;
  int first[count + 1], steps;

  explicit Streams(int n) : steps((n + count - 1) / count) {
    for (int i = 0; i <= count; i++) first[i] = i * n / count;
  }
  int size(int i) const { return first[i + 1] - first[i]; }
  // Where a half of stream i begins; the first one ends where the second begins.
  int half(int i, int h) const { return first[i] + h * ((size(i) + 1) / 2); }
  // The key of stream i in step t < size(i); at most first[i + 1] in a step after that.
  int key(int i, int t) const { return half(i, t % halves) + t / halves; }
  // Calls f(t, x) for each step: x holds the streams' numbers in a table of one for each key, in the order of the
  // lanes, [stream][row]; anything for a stream that has ended.
  template <class T, class F> GQA_INLINE void each_step(const float* table, F f) const {
    for (int h = 0; h < halves; h++) {
      const float* from[count];
      for (int i = 0; i < count; i++) from[i] = table + half(i, h);
      for (int t = h, u = 0; t < steps; t += halves, u++)
        f(t, lanes<T>(from, u, std::make_integer_sequence<int, count>{}));
    }
  }

 private:
  template <class T, int... i>
  static GQA_INLINE Vec<T> lanes(const float* const (&from)[count], int u, std::integer_sequence<int, i...>) {
    Vec<T> x{};
    ((x = shuffle<T, OfStream<width<T>, width<T> / count, i>>(x, splat(T(from[i][u])))), ...);
    return x;
  }
};

template <class T, int R> constexpr int streams = width<T> / R;  // so that a step's sums fill one vector
constexpr int cache_line = 64;
constexpr int bytes_ahead = 512, most_rows_ahead = 8;  // what is prefetched; more of it makes decoding slower
template <class S> GQA_INLINE int rows_ahead(int channels) {
  return int(most(1, least(most_rows_ahead, bytes_ahead / most(1, channels * int(sizeof(S))))));
}

// The rows of K or V in the order in which the streams come to them; `zeros` for a stream that has ended.
template <int count> class StreamRows {
 public:
  StreamRows(const Streams<count>& keys, const char* const* table, const char* zeros) {
    for (int i = 0; i < count; i++) {
      for (int t = 0; t < keys.size(i); t++) rows_[t * count + i] = table[keys.key(i, t)];
      for (int t = keys.size(i); t < keys.steps; t++) rows_[t * count + i] = zeros;
    }
    for (int i = 0; i < most_rows_ahead; i++) rows_[keys.steps * count + i] = zeros;
  }
  // Those of step t, or as many from `ahead` rows further on.
  template <class S> GQA_INLINE void at(int t, const S* (&row)[count], int ahead = 0) const {
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) row[i] = reinterpret_cast<const S*>(rows_[t * count + ahead + i]);
  }

 private:
  const char* rows_[channels_block + count + most_rows_ahead];
};

// Walks the channels of a row: `ahead(c)` at the start of each whole cache line of S, `step(c, n)` for each vector, of
// which n elements are there.
template <class T, class S, class Ahead, class Step> GQA_INLINE void each_line(int channels, Ahead ahead, Step step) {
  constexpr int w = width<T>, vectors = w * int(sizeof(S)) < cache_line ? cache_line / (w * int(sizeof(S))) : 1;
  int c = 0;
  for (; c + vectors * w <= channels; c += vectors * w) {
    ahead(c);
#pragma GCC unroll 8
    for (int i = 0; i < vectors; i++) step(c + i * w, w);
  }
  for (; c + w <= channels; c += w) step(c, w);
  if (c < channels) step(c, channels - c);
}
template <class T, class S> GQA_INLINE Vec<T> load_row(const S* p, int n) {
  return n == width<T> ? load_as<T, S>(p) : load_as<T, S>(p, n);
}

// s[step][stream][row] = k . q. q: R rows, `stride` apart, padded with zeros to whole vectors.
template <class T, class S, int R>
void multiply_keys(const T* q, int64_t stride, int head_dim, const Streams<streams<T, R>>& keys,
                   const StreamRows<streams<T, R>>& k, T* s) {
  constexpr int w = width<T>, count = streams<T, R>;
  const int ahead = rows_ahead<S>(head_dim);
  for (int t = 0; t < keys.steps; t++, s += w) {
    const S *row[count], *next[count];
    k.at(t, row);
    k.at(t, next, ahead);
    Vec<T> sum[w] = {};
    each_line<T, S>(
        head_dim,
        [&](int d) __attribute__((always_inline)) {
#pragma GCC unroll 16
          for (int i = 0; i < count; i++) prefetch(next[i] + d);
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
                          int ahead) {
  constexpr int w = width<T>, count = streams<T, R>;
  const S *row[U][count], *next[U][count];
  Vec<T> weight[U][w];
#pragma GCC unroll 2
  for (int u = 0; u < U; u++) {
    v.at(t + u, row[u]);
    v.at(t + u, next[u], ahead);
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

// o += p . v, with p[step][stream][row]. o: R rows of whole vectors, `stride` apart.
template <class T, class S, int R>
void add_values(T* o, int64_t stride, int channels, const Streams<streams<T, R>>& keys,
                const StreamRows<streams<T, R>>& v, const T* p) {
  constexpr int at_once = streams<T, R> <= 2 ? 2 : 1;  // fewer loads and stores of o, where it is stored most often
  const int ahead = rows_ahead<S>(channels);
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

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
