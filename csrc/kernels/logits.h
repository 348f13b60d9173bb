// logits.h: the unit of scores. The one place that knows that logits are kept in base 2, where a weight is 2^x rather
// than e^x, which spares a multiplication for each score.
//
// Scores leave the product of q and k in base 2 where nothing else is done to them, since q is scaled once when it is
// loaded. Functions of the score, such as the soft cap, want natural units: where there is one, q is scaled without
// log2(e), and the function's own last step turns its result to base 2 (score_block.h).
#pragma once

#include "exp2.h"
#include "kernel.h"

namespace gqa {
namespace GQA_ISA {
namespace {

template <class T> constexpr T infinity = T(__builtin_inf());
template <class T> constexpr T log2e = T(1.4426950408889634);
template <class T> constexpr T ln2 = T(0.6931471805599453);

// Whether a function of the score stands between the product and the softmax.
GQA_INLINE bool changes_scores(const BoundProgram* program) { return program && program->plan->has[output_score]; }
GQA_INLINE bool in_natural_units(const Attention& a) { return a.softcap > 0 || changes_scores(a.program); }

// What q is multiplied with when it is loaded.
template <class T> GQA_INLINE T query_scale(const Attention& a) {
  return T(a.scale * (in_natural_units(a) ? 1.0 : log2e<double>));
}

// A number that is added to natural logits, in base 2. Only -infinity is -infinity: a finite number stays finite.
template <class T> constexpr T largest = sizeof(T) == 8 ? T(1.7976931348623157e308) : T(3.402823466e38);
template <class T, class Wide> GQA_INLINE T to_base2(Wide x) {
  const Wide y = x * log2e<Wide>;
  if (y < -largest<T>) return x >= -largest<Wide> ? -largest<T> : T(x);
  if (y > largest<T>) return x <= largest<Wide> ? largest<T> : T(x);
  return T(y);
}
template <class T> GQA_INLINE Vec<T> to_base2_lanes(Vec<T> x) {
  const Vec<T> y = min(splat(largest<T>), max(splat(-largest<T>), x * log2e<T>));
  return x - x == 0 ? y : x;  // infinities and NaN stay what they are
}
template <class T> GQA_INLINE T to_natural(T x) { return x * ln2<T>; }

// The softmax's denominator, sum * 2^top, of a row with the state (m, l), m in base 2: with the head's sink, if it has
// one. What was relative to m is to be multiplied with `rescale`.
template <class T> struct Denominator {
  T top, sum, rescale;
};
template <class T> GQA_INLINE Denominator<T> denominator(const Attention& a, int64_t head, T m, T l) {
  if (!a.sinks || a.sinks[head] == -infinity<double>) return {m, l, 1};
  const T sink = to_base2<T>(a.sinks[head]), top = m > sink ? m : sink, rescale = exp2_of(m - top);
  return {top, l * rescale + exp2_of(sink - top), rescale};
}

// What becomes of such a row: its o times `scale` is the output.
template <class T> struct End {
  T scale, lse;
};
template <class T> GQA_INLINE End<T> end_of_row(const Attention& a, int64_t head, T m, T l) {
  const Denominator<T> d = denominator(a, head, m, l);
  if (d.sum == 0) return {0, -infinity<T>};
  return {d.rescale / d.sum, a.lse ? to_natural(d.top + log2_of(d.sum)) : T(0)};
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
