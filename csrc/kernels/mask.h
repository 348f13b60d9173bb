// mask.h: the two ways in which keys are masked: by position (an interval of keys per query) and by a mask tensor.
#pragma once

#include "keys.h"
#include "shuffle.h"
#include "softmax.h"

namespace gqa {
namespace GQA_ISA {
namespace {

struct Interval {
  int64_t begin, end;
};

// The keys that causal, window and lengths allow to query i; both ends grow with i.
GQA_INLINE Interval attended(const Attention& a, const Sequence& sequence, int64_t i) {
  const int64_t position = sequence.offset + i;
  return {most(0, position - a.left), most(0, least(sequence.keys, position + a.right + 1))};
}

// A mask element as a base-2 logit. Only false and -infinity mask: a finite value stays finite.
template <class T> constexpr T largest = sizeof(T) == 8 ? T(1.7976931348623157e308) : T(3.402823466e38);
template <class T, class Wide> GQA_INLINE T mask_logit(Wide x) {
  const Wide y = x * log2e<Wide>;
  if (y < -largest<T>) return x >= -largest<Wide> ? -largest<T> : T(x);
  if (y > largest<T>) return x <= largest<Wide> ? largest<T> : T(x);
  return T(y);
}
template <class T, class S> GQA_INLINE T mask_value(S x) { return mask_logit<T>(convert<T>(x)); }
template <> GQA_INLINE float mask_value<float, double>(double x) { return mask_logit<float>(x); }
template <> GQA_INLINE float mask_value<float, bool>(bool x) { return x ? 0 : -infinity<float>; }
template <> GQA_INLINE double mask_value<double, bool>(bool x) { return x ? 0 : -infinity<double>; }

// The mask of row (head, query) for keys [key, key + n), as biases; false if it hides them all.
template <class T>
bool mask_row(const Attention& a, const Sequence& sequence, int64_t head, int64_t query, int64_t key, int n, T* bias) {
  const int64_t stride = a.mask_key_stride;
  const char* mask = a.mask + sequence.mask_batch * a.mask_strides.batch + head * a.mask_strides.head +
                     query * a.mask_strides.token + (sequence.mask_key + key) * stride;
  with_mask_type(a.mask_type, [&](auto s) {
    using S = decltype(s);
    if (stride == int64_t(sizeof(S)))  // the common case, which the compiler can vectorise
      for (int j = 0; j < n; j++) bias[j] = mask_value<T>(read<S>(mask + j * sizeof(S)));
    else
      for (int j = 0; j < n; j++) bias[j] = mask_value<T>(read<S>(mask + j * stride));
  });
  bool any = false;
  for (int j = 0; j < n; j++) any |= bias[j] != -infinity<T>;
  return any;
}

// Whether the values of a block hold no NaN and no infinity.
template <class T> bool values_are_finite(const KeyBlock& block, int v_head_dim) {
  bool finite = true;
  with_cache_type(block.v_type, [&](auto s) {
    using S = decltype(s);
    for (int j = 0; j < block.count; j++) {
      Vec<T> poison{};  // 0, or NaN once a value was not finite
      const S* row = reinterpret_cast<const S*>(block.v[j]);
      int c = 0;
      for (; c + width<T> <= v_head_dim; c += width<T>) poison += load_as<T, S>(row + c) * T(0);
      if (c < v_head_dim) poison += load_as<T, S>(row + c, v_head_dim - c) * T(0);
      finite &= fold<T, 1>(poison, [](Vec<T> x, Vec<T> y) { return x + y; })[0] == 0;
    }
  });
  return finite;
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
