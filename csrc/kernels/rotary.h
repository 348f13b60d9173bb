// rotary.h: rotary position embedding of rows of channels (Su et al. 2021, arXiv:2104.09864).
//
// A pair of channels (a, b) becomes (a cos - b sin, a sin + b cos). Angles belong to tokens and are shared by all
// heads: those of a few tokens are laid out first, converted to T, and then serve every head.
#pragma once

#include "keys.h"
#include "shuffle.h"
#include "vec.h"

namespace gqa {
namespace GQA_ISA {
namespace {

constexpr int64_t max_angles = 512;  // of several tokens, or a part of one's; small, for they lie on the stack

// Rows of angles, one for each token, for channels side by side: of halves one value for each pair; of neighbours one
// for each channel, with the sign of the sine that its product is added with, (cos, cos) and (-sin, sin).
template <class T> struct Angles {
  T cos[max_angles], sin[max_angles];
};

template <class T, class C> void widen(const C* from, int64_t n, T* to) {
  int64_t c = 0;
  for (; c + width<T> <= n; c += width<T>) store(to + c, load_as<T, C>(from + c));
  for (; c < n; c++) to[c] = convert<T>(read<C>(from + c));
}
template <class T> void widen(const char* row, DType type, int64_t first, int64_t n, T* to) {
  with_float_type(type, [&](auto c) {
    using C = decltype(c);
    widen<T, C>(reinterpret_cast<const C*>(row) + first, n, to);
  });
}

// The angles of pairs [first, first + pairs) for tokens [token, token + tokens) of batch entry b.
template <class T>
void fill(Angles<T>& angles, const Rotary& r, int64_t b, int64_t token, int64_t tokens, int64_t first, int64_t pairs) {
  T *cos = angles.cos, *sin = angles.sin;
  for (int64_t i = 0; i < tokens; i++) {
    const int64_t position =
        r.positions ? r.positions[b * r.position_stride + token + i] : r.first_position + token + i;
    if (!r.interleaved) {
      widen(r.cos + position * r.cos_stride, r.cos_type, first, pairs, cos);
      widen(r.sin + position * r.sin_stride, r.sin_type, first, pairs, sin);
      cos += pairs, sin += pairs;
      continue;
    }
    T u[max_angles / 2], v[max_angles / 2];
    widen(r.cos + position * r.cos_stride, r.cos_type, first, pairs, u);
    widen(r.sin + position * r.sin_stride, r.sin_type, first, pairs, v);
    for (int64_t c = 0; c < pairs; c++, cos += 2, sin += 2) {
      cos[0] = cos[1] = u[c];
      sin[0] = -v[c];
      sin[1] = v[c];
    }
  }
}

// Pairs (c, c + half): channels of the first half turn with those of the second.
template <class T, class S>
void rotate_halves(const S* x, S* out, const T* cos, const T* sin, int64_t half, int64_t pairs) {
  int64_t c = 0;
  for (; c + width<T> <= pairs; c += width<T>) {
    const Vec<T> a = load_as<T, S>(x + c), b = load_as<T, S>(x + half + c), u = load(cos + c), v = load(sin + c);
    store_as<S, T>(out + c, a * u - b * v);
    store_as<S, T>(out + half + c, a * v + b * u);
  }
  for (; c < pairs; c++) {
    const T a = convert<T>(read<S>(x + c)), b = convert<T>(read<S>(x + half + c));
    write(out + c, narrow<S>(a * cos[c] - b * sin[c]));
    write(out + half + c, narrow<S>(a * sin[c] + b * cos[c]));
  }
}

// Pairs (2c, 2c + 1): each channel turns with its neighbour.
template <class T, class S> void rotate_neighbours(const S* x, S* out, const T* cos, const T* sin, int64_t channels) {
  int64_t c = 0;
  for (; c + width<T> <= channels; c += width<T>) {
    const Vec<T> mine = load_as<T, S>(x + c), other = shuffle<T, Swapped<width<T>, 1>>(mine, mine);
    store_as<S, T>(out + c, other * load(sin + c) + mine * load(cos + c));
  }
  for (; c < channels; c += 2) {
    const T a = convert<T>(read<S>(x + c)), b = convert<T>(read<S>(x + c + 1));
    write(out + c, narrow<S>(a * cos[c] + b * sin[c]));
    write(out + c + 1, narrow<S>(b * cos[c + 1] + a * sin[c + 1]));
  }
}

// Calls f(row of x, row of out, i) for every head of the tokens token + i, 0 <= i < tokens, in the order of memory.
template <class S, class F> void each_row(const Rotary& r, int64_t b, int64_t token, int64_t tokens, F f) {
  const Strides &from = r.x_strides, &to = r.out_strides;
  const char* const x = r.x + b * from.batch + token * from.token;
  char* const out = r.out + b * to.batch + token * to.token;
  const bool by_heads = to.head > to.token;
  const int64_t outer = by_heads ? r.heads : tokens, inner = by_heads ? tokens : r.heads, step = by_heads;
  const int64_t x_outer = by_heads ? from.head : from.token, x_inner = by_heads ? from.token : from.head;
  const int64_t out_outer = by_heads ? to.head : to.token, out_inner = by_heads ? to.token : to.head;
  for (int64_t n = 0; n < outer; n++)
    for (int64_t m = 0, i = by_heads ? 0 : n; m < inner; m++, i += step)
      f(reinterpret_cast<const S*>(x + n * x_outer + m * x_inner),
        reinterpret_cast<S*>(out + n * out_outer + m * out_inner), i);
}

template <class T, class S, bool interleaved> void rotate_tokens(const Rotary& r, int64_t begin, int64_t end) {
  constexpr int64_t per_pair = interleaved ? 2 : 1;
  const int64_t half = r.rotary_dim / 2, pairs_at_once = min(max(half, 1), max_angles / per_pair),
                tokens_at_once = max_angles / per_pair / pairs_at_once;
  Angles<T> angles;
  while (begin < end) {
    const int64_t b = begin / r.tokens, token = begin % r.tokens,
                  tokens = min(tokens_at_once, min(r.tokens - token, end - begin));
    begin += tokens;
    for (int64_t first = 0; first < half; first += pairs_at_once) {
      const int64_t pairs = min(pairs_at_once, half - first), count = pairs * per_pair;
      fill(angles, r, b, token, tokens, first, pairs);
      each_row<S>(r, b, token, tokens, [&](const S* x, S* out, int64_t i) {
        const T *cos = angles.cos + i * count, *sin = angles.sin + i * count;
        if constexpr (interleaved) rotate_neighbours<T, S>(x + 2 * first, out + 2 * first, cos, sin, count);
        else rotate_halves<T, S>(x + first, out + first, cos, sin, half, count);
      });
    }
    if (const int64_t others = r.head_dim - r.rotary_dim)
      each_row<S>(r, b, token, tokens, [&](const S* x, S* out, int64_t) {
        memcpy(out + r.rotary_dim, x + r.rotary_dim, size_t(others) * sizeof(S));
      });
  }
}

template <class T, class S> void rotate_as(const Rotary& r, int64_t begin, int64_t end) {
  if (r.interleaved) rotate_tokens<T, S, true>(r, begin, end);
  else rotate_tokens<T, S, false>(r, begin, end);
}

// Tokens [begin, end) of all batch entries, counted one entry after another.
template <class T> void rotate(const Rotary& r, int64_t begin, int64_t end) {
  if constexpr (sizeof(T) == 8) rotate_as<T, double>(r, begin, end);
  else if (r.type == DType::f16) rotate_as<T, f16>(r, begin, end);
  else if (r.type == DType::bf16) rotate_as<T, bf16>(r, begin, end);
  else rotate_as<T, float>(r, begin, end);
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
