// gradient_mask.h: the gradient of a mask: dS, added up over the axes that the mask is broadcast over.
#pragma once

#include "tile_rows.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Adds ds[key][lane] of n keys from `key` on. Where the mask has one element for all keys, their sum goes to
// row_sums[lane] instead, to be added when all keys have come.
template <class T>
void add_mask_gradient(const Gradients& g, const HeadRows& head, const LaneRows& rows, int64_t key, int n, const T* ds,
                       T* row_sums) {
  constexpr int w = width<T>, lanes = tile_lanes<T>;
  const Sequence& sequence = head.sequence;
  for (int r = 0; r < rows.count; r += w)
    for (int j = 0; j < n; j += w) {
      Vec<T> square[w];
#pragma GCC unroll 16
      for (int i = 0; i < w; i++) square[i] = j + i < n ? load(ds + (j + i) * lanes + r) : Vec<T>{};
      if (g.dmask_key_stride == 0) {
        for (int i = 0; i < w; i++) store(row_sums + r, load(row_sums + r) + square[i]);
        continue;
      }
      transpose<T>(square);
      for (int i = 0; i < w && r + i < rows.count; i++) {
        const int64_t row = rows.row(r + i);
        T* const to =
            reinterpret_cast<T*>(g.dmask + sequence.mask_batch * g.dmask_strides.batch +
                                 head.head(row) * g.dmask_strides.head + head.query(row) * g.dmask_strides.token) +
            sequence.mask_key + key + j;
        if (n - j >= w) store(to, load(to) + square[i]);
        else
          for (int l = 0; l < n - j; l++) to[l] += square[i][l];
      }
    }
}

// Adds the sums over all keys of a tile's rows.
template <class T>
void add_mask_gradient_of_rows(const Gradients& g, const HeadRows& head, const LaneRows& rows, const T* row_sums) {
  for (int r = 0; r < rows.count; r++) {
    const int64_t row = rows.row(r);
    T* const to = reinterpret_cast<T*>(g.dmask + head.sequence.mask_batch * g.dmask_strides.batch +
                                       head.head(row) * g.dmask_strides.head + head.query(row) * g.dmask_strides.token);
    *to += row_sums[r];
  }
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
