// products/streams.h: the order in which products with channels in the lanes take the keys of a block.
//
// The keys are taken as several streams, far apart, advancing together: memory serves a few sequential streams faster
// than one, and a step has more independent sums: R rows times `streams` keys, one vector of scores.
#pragma once

#include "../keys.h"
#include "../shuffle.h"
#include "../tuning.h"

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
  int total() const { return first[count]; }
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

// How many rows ahead of those of a step are prefetched, in the order of the streams.
constexpr int max_rows_ahead = 128;
struct Ahead {
  int l1, l2;  // l2: 0 for none
};
template <class S, int R> GQA_INLINE Ahead rows_ahead(int channels, int keys) {
  using Prefetch = PrefetchOf<sizeof(S), R>;
  const int row = int(max(1, channels * int(sizeof(S))));
  return {int(max(1, min(8, Prefetch::l1_bytes / row))),
          keys >= keys_worth_l2_prefetch ? int(min(max_rows_ahead, Prefetch::l2_bytes / row)) : 0};
}
// Whether that is anything: where it never is, nothing of it is compiled.
template <class S, int R> GQA_INLINE bool far(Ahead ahead) {
  return PrefetchOf<sizeof(S), R>::l2_bytes > 0 && ahead.l2 > 0;
}

// The rows of K or V in the order in which the streams come to them; `zeros` for a stream that has ended.
template <int count> class StreamRows {
 public:
  StreamRows(const Streams<count>& keys, const char* const* table, const char* zeros) {
    for (int i = 0; i < count; i++) {
      for (int t = 0; t < keys.size(i); t++) rows_[t * count + i] = table[keys.key(i, t)];
      for (int t = keys.size(i); t < keys.steps; t++) rows_[t * count + i] = zeros;
    }
    for (int i = 0; i < max_rows_ahead; i++) rows_[keys.steps * count + i] = zeros;
  }
  const char* const* rows() const { return rows_; }
  // Those of step t, or as many from `ahead` rows further on.
  template <class S> GQA_INLINE void at(int t, const S* (&row)[count], int ahead = 0) const {
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) row[i] = reinterpret_cast<const S*>(rows_[t * count + ahead + i]);
  }

 private:
  const char* rows_[channels_block + count + max_rows_ahead];
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

// Multiplies s[step][stream][row] with the number of each key; `weights`: 0 stays 0, whatever the number is.
template <class T, int R, bool weights>
void multiply_scales(const float* scales, const Streams<streams<T, R>>& keys, T* table) {
  keys.template each_step<T>(
      scales, [&](int t, Vec<T> scale) __attribute__((always_inline)) {
        T* s = table + t * width<T>;
        const Vec<T> x = load(s), scaled = x * scale;
        store(s, weights ? (x == 0 ? x : scaled) : scaled);
      });
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
