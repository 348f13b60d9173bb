// score_block.h: the scores of some rows with one block of keys, between the product with the keys and the softmax.
//
// Scores lie as s[step][lane]. A lane belongs to one row of Q; which row, and which key a step is for it, the
// coordinates tell, since the two loops deal rows and keys to lanes in different ways. `apply` is the one place where
// scores are changed: soft cap, a program, mask, the edges of lengths, causal and windows.
// Online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867.
#pragma once

#include "mask.h"
#include "program.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Coordinates with rows in the lanes: lane l is row first + l, a step is the same key for all of them.
struct TileCoordinates {
  static constexpr int phases = 1;
  int64_t first, last;  // rows; lanes past the last repeat it
  int keys;

  int64_t row(int lane) const { return min(first + lane, last); }
  int first_key(int, int) const { return 0; }
  int end_key(int, int) const { return keys; }
};

// What a program does to a block of scores.
template <class T> struct BlockProgram {
  const ProgramRunner<T>* runner;
  const T *rows, *keys;  // values of the lanes' rows, and of the keys
  int first_key;         // the step of `keys` that is step 0 of the scores
  bool scores, hides;    // changes scores; hides some
  int whole[2];          // hides: nothing in the steps [0] to [1]
  bool slopes = false;   // scores: their slopes are wanted, where the block has room for them
};

// N vectors of lanes, `stride` elements from one step to the next. Coordinates have
//   phases: step t is of phase t % phases; in each, lane l goes on from key to key, first_key(phase, l) on
//   end_key(phase, l): where its keys end; keys are counted from `begin`
//   row(l): of the KV head
template <class T, int N, class Coordinates> struct ScoreBlock {
  static constexpr int w = width<T>, lanes = N * w;

  T* s;
  int steps, stride;
  Coordinates coordinates;
  int64_t begin;  // the sequence's key that is key 0 of the block
  const T* bias;  // lies as s does; null: none. -infinity masks whatever the score is
  bool edges;     // some row does not attend some key, or a lane's keys end early
  int whole[2];   // edges: the steps [0] to [1] need no masking
  const BlockProgram<T>* program = nullptr;
  // Lies as s does: where the functions of the score leave the derivatives of what they give by what they take, in the
  // same units. Null: not wanted.
  T* slope = nullptr;
  // Whether a program may leave scores in natural units, for `weights` to turn to base 2.
  bool may_stay_natural = false;

  // What `apply` says of the scores. hidden: the program made some of them -infinity. natural: they are in natural
  // units; `top` is in base 2 all the same.
  struct Applied {
    bool hidden, natural;
  };

  // Everything that happens to scores; `top` is the maximum of each lane then.
  GQA_INLINE Applied apply(const Attention& a, const Sequence& sequence, int64_t group, Vec<T> (&top)[N]) const {
    if (a.softcap > 0) soft_cap(T(a.softcap), changes_scores(a.program) ? T(1) : log2e<T>);
    if (program) {
      const bool stays = may_stay_natural && program->scores && !bias && !slope;
      const bool hidden = run_program(top, a.softcap > 0, stays);
      if (edges) {
        mask_edges(a, sequence, group);
        maximum(top);
      }
      return {hidden, stays && end_natural(top)};
    }
    if (bias) add_bias();
    if (edges) mask_edges(a, sequence, group);
    maximum(top);
    return {false, false};
  }

  // Turns scores into weights 2^(s - m), where m = max(m, top), and rescales the sum l; alpha is the rescaling factor.
  GQA_INLINE void weights(const Vec<T> (&top)[N], T* m, T* l, Vec<T> (&alpha)[N], bool natural = false) const {
    if (natural)
      weights_of(
          [](Vec<T> x, Vec<T> shift) __attribute__((always_inline)) { return x * log2e<T> - shift; }, top, m, l, alpha);
    else weights_of([](Vec<T> x, Vec<T> shift) __attribute__((always_inline)) { return x - shift; }, top, m, l, alpha);
  }

 private:
  template <class F>
  GQA_INLINE void weights_of(F shifted, const Vec<T> (&top)[N], T* m, T* l, Vec<T> (&alpha)[N]) const {
    Vec<T> shift[N], sum[N];
    for (int v = 0; v < N; v++) {
      const Vec<T> before = load(m + v * w), now = max(top[v], before);
      shift[v] = now == -infinity<T> ? splat(T(0)) : now;
      alpha[v] = exp2<T>(before - shift[v]);
      sum[v] = load(l + v * w) * alpha[v];
      store(m + v * w, now);
    }
    each_step(0, steps, 1, [&](int, T* x) {
      for (int v = 0; v < N; v++) {
        const Vec<T> p = exp2<T>(shifted(load(x + v * w), shift[v]));
        store(x + v * w, p);
        sum[v] += p;
      }
    });
    for (int v = 0; v < N; v++) store(l + v * w, sum[v]);
  }

  // f(t, x) for the steps t = from, from + by, ... before `to`, whose first score is at x. With locals in its loop:
  // what is stored through x could be a member, as far as the compiler knows.
  template <class F> GQA_INLINE void each_step(int from, int to, int by, F f) const {
    const int64_t stride_by = int64_t(by) * stride;
    T* x = s + int64_t(from) * stride;
    for (int t = from; t < to; t += by, x += stride_by) f(t, x);
  }

  // Takes natural units; unit: log2(e) to give base 2, as in_natural_units says, 1 where a program follows.
  void soft_cap(T cap, T unit) const {
    if (slope)
      each_step(0, steps, 1, [=, offset = slope - s](int, T* x) {
        for (int v = 0; v < N; v++) {
          const Vec<T> y = tanh<T>(load(x + v * w) / cap);
          store(x + offset + v * w, T(1) - y * y);
          store(x + v * w, y * (cap * unit));
        }
      });
    else
      each_step(0, steps, 1, [=](int, T* x) {
        for (int v = 0; v < N; v++) store(x + v * w, tanh<T>(load(x + v * w) / cap) * (cap * unit));
      });
  }

  static GQA_INLINE Vec<T> biased(Vec<T> score, Vec<T> b) { return b == -infinity<T> ? b : score + b; }
  void add_bias() const {
    each_step(0, steps, 1, [offset = bias - s](int, T* x) {
      for (int v = 0; v < N; v++) store(x + v * w, biased(load(x + v * w), load(x + offset + v * w)));
    });
  }

  // The program's scores, the bias, and the program's mask, in this order; `top` is the maximum of each lane then.
  // Returns whether some score is -infinity. capped: a soft cap came before, and left its slope. natural: scores stay
  // in natural units, which spares the conversion, and writing them where the program leaves them in their place.
  bool run_program(Vec<T> (&top)[N], bool capped, bool natural) const {
    const int score = program->scores ? goal_score | (slope && program->slopes ? goal_slope : 0) : 0;
    const int mask = program->hides ? goal_mask : 0;
    const int whole_from = mask ? int(min(max(0, program->whole[0]), steps)) : 0;
    const int whole_to = mask ? int(max(whole_from, min(program->whole[1], steps))) : steps;
    Extremes extremes;
    for (int v = 0; v < N; v++) extremes.high[v] = splat(-infinity<T>);
    extremes.low = splat(infinity<T>);
    run_goal(score | mask, 0, whole_from, capped, natural, extremes);
    run_goal(score, whole_from, whole_to, capped, natural, extremes);
    run_goal(score | mask, whole_to, steps, capped, natural, extremes);
    for (int v = 0; v < N; v++) top[v] = extremes.high[v];
    T low[w];
    store(low, extremes.low);
    for (int l = 0; l < w; l++)
      if (low[l] == -infinity<T>) return true;
    return false;
  }
  // The largest score of each lane, and the smallest of lanes of either vector; NaN aside.
  struct Extremes {
    Vec<T> high[N], low;
  };
  void run_goal(int goal, int from, int to, bool capped, bool natural, Extremes& extremes) const {
    if (from >= to) return;
    const auto end = [&](int t, int n, const Place<T>* results) {
      const bool score = goal & goal_score, mask = goal & goal_mask;
      if (goal & goal_slope) end_slopes(t, n, results[output_slope], capped);
      if (score && natural) end_natural_scores(t, n, results, mask, extremes);
      else if (score && mask) end_program<true, true>(t, n, results, extremes);
      else if (score) end_program<true, false>(t, n, results, extremes);
      else end_program<false, true>(t, n, results, extremes);
    };
    if (goal)
      program->runner->template run<N>(goal, from, to, s, stride, program->rows, program->keys, program->first_key,
                                       end);
    else end_program<false, false>(from, to - from, nullptr, extremes);
  }
  // Before the scores are written, which may be the slopes themselves.
  void end_slopes(int from, int n, Place<T> x, bool capped) const {
    each_step(from, from + n, 1, [&, offset = slope - s](int, T* to) {
      for (int v = 0; v < N; v++) {
        const Vec<T> y = load(x.at + v * x.vector);
        store(to + offset + v * w, capped ? load(to + offset + v * w) * y : y);
      }
      x.at += x.step;
    });
  }
  // Takes natural units where the program gave scores, and gives base 2.
  template <bool score, bool mask> void end_program(int from, int n, const Place<T>* results, Extremes& so_far) const {
    const bool with_bias = bias != nullptr;
    const int64_t offset = with_bias ? bias - s : 0;
    Place<T> x = score ? results[output_score] : Place<T>{s + int64_t(from) * stride, stride, w};
    Place<T> attended = mask ? results[output_mask] : Place<T>{};
    Extremes extremes = so_far;
    each_step(from, from + n, 1, [&](int, T* to) {
      for (int v = 0; v < N; v++) {
        Vec<T> y = load(x.at + v * x.vector);
        if (score) y = to_base2_lanes<T>(y);
        if (with_bias) y = biased(y, load(to + offset + v * w));
        if (mask) y = bits<Whole<T>>(load(attended.at + v * attended.vector)) != 0 ? y : splat(-infinity<T>);
        extremes.high[v] = max(y, extremes.high[v]);
        extremes.low = min(y, extremes.low);
        store(to + v * w, y);
      }
      x.at += x.step;
      if (mask) attended.at += attended.step;
    });
    so_far = extremes;
  }

  // The same without a bias, in natural units.
  void end_natural_scores(int from, int n, const Place<T>* results, bool mask, Extremes& so_far) const {
    Place<T> x = results[output_score], attended = mask ? results[output_mask] : Place<T>{};
    const bool in_place = x.at == s + int64_t(from) * stride;
    Extremes extremes = so_far;
    const auto gather_extremes = [&](int v, Vec<T> y) __attribute__((always_inline)) {
      extremes.high[v] = max(y, extremes.high[v]);
      extremes.low = min(y, extremes.low);
    };
    if (mask)
      each_step(from, from + n, 1, [&](int, T* to) {
        for (int v = 0; v < N; v++) {
          const Whole<T> shown = bits<Whole<T>>(load(attended.at + v * attended.vector));
          const Vec<T> y = shown != 0 ? load(x.at + v * x.vector) : splat(-infinity<T>);
          gather_extremes(v, y);
          store(to + v * w, y);
        }
        x.at += x.step, attended.at += attended.step;
      });
    else if (in_place)
      each_step(from, from + n, 1, [&](int, T* to) {
        for (int v = 0; v < N; v++) gather_extremes(v, load(to + v * w));
      });
    else
      each_step(from, from + n, 1, [&](int, T* to) {
        for (int v = 0; v < N; v++) {
          const Vec<T> y = load(x.at + v * x.vector);
          gather_extremes(v, y);
          store(to + v * w, y);
        }
        x.at += x.step;
      });
    so_far = extremes;
  }
  // Takes `top` to base 2. Returns whether scores may stay in natural units: next to a very large one the rounding of
  // its product with log2(e) would be a large part of what 2^x is taken of; then they are in base 2 as well. A row
  // whose scores are all very negative counts as well, as long as they are not -infinity.
  bool end_natural(Vec<T> (&top)[N]) const {
    constexpr T limit = T(1 << 16);
    bool small = true;
    for (int v = 0; v < N; v++)
      for (int l = 0; l < w; l++) small &= (top[v][l] <= limit && top[v][l] >= -limit) || top[v][l] == -infinity<T>;
    for (int v = 0; v < N; v++) top[v] = to_base2_lanes<T>(top[v]);
    if (!small)
      each_step(0, steps, 1, [&](int, T* x) {
        for (int v = 0; v < N; v++) store(x + v * w, to_base2_lanes<T>(load(x + v * w)));
      });
    return small;
  }

  // Masks by selection, so that a NaN behind a mask does not show.
  void mask_edges(const Attention& a, const Sequence& sequence, int64_t group) const {
    for (int phase = 0; phase < Coordinates::phases; phase++) {
      T key[lanes], low[lanes], high[lanes];
      for (int l = 0; l < lanes; l++) {
        const Interval interval = attended(a, sequence, coordinates.row(l) / group);
        key[l] = T(coordinates.first_key(phase, l));
        low[l] = T(max(interval.begin - begin, 0));
        high[l] = T(min(interval.end - begin, coordinates.end_key(phase, l)));
      }
      mask(phase, 0, whole[0], key, low, high);
      mask(phase, max(whole[0], whole[1]), steps, key, low, high);
    }
  }

  // Masks, in steps [from, to), the keys outside [low, high).
  void mask(int phase, int64_t from, int64_t to, const T* first, const T* low, const T* high) const {
    constexpr int phases = Coordinates::phases;
    const int begin_at = int(from) + (phase + phases - int(from) % phases) % phases;
    each_step(begin_at, int(to), phases, [=](int t, T* x) {
      for (int v = 0; v < N; v++) {
        const Vec<T> key = load(first + v * w) + T(t / phases), score = load(x + v * w);
        const Vec<T> below_high = key < load(high + v * w) ? score : splat(-infinity<T>);
        store(x + v * w, key < load(low + v * w) ? splat(-infinity<T>) : below_high);
      }
    });
  }

  GQA_INLINE void maximum(Vec<T> (&top)[N]) const {
    for (int v = 0; v < N; v++) top[v] = splat(-infinity<T>);
    each_step(0, steps, 1, [&](int, T* x) {
      for (int v = 0; v < N; v++) top[v] = max(load(x + v * w), top[v]);
    });
  }
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
