// tile.h: the register-tile product, sum over k of a(k, i) * b[k][:], for a few broadcast scalars i and the vectors of
// b. One tile serves Q.K (i = key, k = channel, lanes of Q^T) and P.V (i = channel, k = key, lanes of P^T).
#pragma once

#include "vec.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// The register budget. A tile of M scalars by N vectors keeps M * N sums in registers over the whole product; a step k
// loads N vectors of b, broadcasts M scalars, and does M * N multiply-adds. Each multiply-add needs its sum from the
// step before, four cycles ago, at two a cycle: eight sums hide that, and more of them save loads. With 32 registers 12
// x 2 takes 24 sums, 2 vectors of b and 1 scalar (or none, where a multiply-add broadcasts from memory): 14 x 2 is
// level, and a third vector would leave room for 9 scalars only. With 16 registers 6 x 2 takes 12 sums, 2 vectors and 1
// scalar.
constexpr int tile_height = registers == 32 ? 12 : 6;  // scalars i of a full tile
// As many where each scalar has an address of its own, rather than a place in a panel: the addresses take general
// registers, of which there are 16 on every processor.
constexpr int rows_in_place = 6;
constexpr int tile_vectors = 2;
template <class T> constexpr int tile_lanes = tile_vectors * width<T>;  // rows of Q; also the row stride of b

template <class T, int M, int N> struct Tile {
  Vec<T> at[M][N];
};

// GCC keeps the tile in registers only where every loop over it is unrolled by pragma.
template <int M, int N, class F> GQA_INLINE void each(F f) {
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int v = 0; v < N; v++) f(i, v);
}

template <class T, int M, int N, class A> GQA_INLINE void multiply(Tile<T, M, N>& tile, A a, const T* b, int depth) {
  for (int k = 0; k < depth; k++, b += tile_lanes<T>) {
    Vec<T> lanes[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; v++) lanes[v] = load(b + v * width<T>);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const Vec<T> x = splat(a(k, i));
#pragma GCC unroll 4
      for (int v = 0; v < N; v++) tile.at[i][v] += x * lanes[v];
    }
  }
}

// As multiply, but where b is 0 nothing is added: 0 * NaN and 0 * infinity do not reach the sum. The new sum is kept in
// a register: Clang would select the product instead and add that, which is no multiply-add and rounds twice.
template <class T, int M, int N, class A>
GQA_INLINE void multiply_selecting(Tile<T, M, N>& tile, A a, const T* b, int depth) {
  for (int k = 0; k < depth; k++, b += tile_lanes<T>)
    each<M, N>([&](int i, int v) {
      const Vec<T> lanes = load(b + v * width<T>), sum = in_register(tile.at[i][v] + splat(a(k, i)) * lanes);
      tile.at[i][v] = lanes == 0 ? tile.at[i][v] : sum;
    });
}

// As multiply, but where a scalar is 0 nothing is added.
template <class T, int M, int N, class A>
GQA_INLINE void multiply_selected(Tile<T, M, N>& tile, A a, const T* b, int depth) {
  for (int k = 0; k < depth; k++, b += tile_lanes<T>)
    each<M, N>([&](int i, int v) {
      const T x = a(k, i);
      if (x != 0) tile.at[i][v] += splat(x) * load(b + v * width<T>);
    });
}

// Calls f(integral_constant M, first) for consecutive tiles of M scalars that cover n: full ones, then 4s, then 1s.
template <int M> struct Height {
  static constexpr int value = M;
};
template <class F> GQA_INLINE void cover(int n, F f) {
  int i = 0, full = n / tile_height;
  if (n - full * tile_height == 2 && tile_height % 4 == 2 && full > 0) full--;  // 4 + 4 rather than 6 + 1 + 1
  for (; full > 0; full--, i += tile_height) f(Height<tile_height>{}, i);
  for (; i + 4 <= n; i += 4) f(Height<4>{}, i);
  for (; i < n; i++) f(Height<1>{}, i);
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
