// mask.h: a mask tensor, boolean or of floats, as biases that are added to scores.
#pragma once

#include "logits.h"
#include "ranges.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// A byte of a boolean mask: true unless it is 0. Not a `bool`, which must not be read from memory that holds others.
struct Boolean {
  uint8_t byte;
};

template <class F> GQA_INLINE void with_mask_type(DType type, F f) {
  if (type == DType::boolean) f(Boolean());
  else with_float_type(type, f);
}

template <class T, class S> GQA_INLINE T mask_bias(S x) { return to_base2<T>(convert<T>(x)); }
template <> GQA_INLINE float mask_bias<float, double>(double x) { return to_base2<float>(x); }
template <> GQA_INLINE float mask_bias<float, Boolean>(Boolean x) { return x.byte ? 0 : -infinity<float>; }
template <> GQA_INLINE double mask_bias<double, Boolean>(Boolean x) { return x.byte ? 0 : -infinity<double>; }

// How much of a row, or of several, a mask lets through.
struct MaskCover {
  bool any = false, all = true;

  void add(MaskCover other) { any |= other.any, all &= other.all; }
  Cover cover() const { return !any ? Cover::skip : all ? Cover::whole : Cover::partial; }
};

// The mask of row (head, query) for keys [key, key + n), as biases. `all`: it changes no score.
template <class T>
MaskCover mask_row(const Attention& a, const Sequence& sequence, int64_t head, int64_t query, int64_t key, int n,
                   T* bias) {
  const int64_t stride = a.mask_key_stride;
  const char* mask = a.mask + sequence.mask_batch * a.mask_strides.batch + head * a.mask_strides.head +
                     (sequence.mask_query + query) * a.mask_strides.token + (sequence.mask_key + key) * stride;
  with_mask_type(a.mask_type, [&](auto s) {
    using S = decltype(s);
    if (stride == int64_t(sizeof(S)))  // the common case, which the compiler can vectorise
      for (int j = 0; j < n; j++) bias[j] = mask_bias<T>(read<S>(mask + j * sizeof(S)));
    else
      for (int j = 0; j < n; j++) bias[j] = mask_bias<T>(read<S>(mask + j * stride));
  });
  MaskCover cover;
  for (int j = 0; j < n; j++) cover.any |= bias[j] != -infinity<T>, cover.all &= bias[j] == 0;
  return cover;
}

// Whether the rows [from, to) of a block's values hold no NaN and no infinity.
template <class T> bool values_are_finite(const TokenRows& tokens, int from, int to, int v_head_dim) {
  bool finite = true;
  with_cache_type(tokens.type, [&](auto s) {
    using S = decltype(s);
    for (int j = from; j < to; j++) {
      Vec<T> poison{};  // 0, or NaN once a value was not finite
      const S* row = reinterpret_cast<const S*>(tokens.row[j]);
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
