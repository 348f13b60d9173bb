// rotary.h: rotary position embedding of rows of channels (Su et al. 2021, arXiv:2104.09864).
#pragma once

#include "keys.h"
#include "vec.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Pairs (c, c + half): channel c of the first half turns with channel c of the second.
template <class T, class S> void rotate_halves(const S* x, S* out, const T* cos, const T* sin, int64_t half) {
  int64_t c = 0;
  for (; c + width<T> <= half; c += width<T>) {
    const Vec<T> a = load_as<T, S>(x + c), b = load_as<T, S>(x + half + c), u = load(cos + c), v = load(sin + c);
    store_as<S, T>(out + c, a * u - b * v);
    store_as<S, T>(out + half + c, a * v + b * u);
  }
  for (; c < half; c++) {
    const T a = convert<T>(read<S>(x + c)), b = convert<T>(read<S>(x + half + c));
    write(out + c, narrow<S>(a * cos[c] - b * sin[c]));
    write(out + half + c, narrow<S>(a * sin[c] + b * cos[c]));
  }
}

// Pairs (2c, 2c + 1).
template <class T, class S> void rotate_neighbours(const S* x, S* out, const T* cos, const T* sin, int64_t half) {
  for (int64_t c = 0; c < half; c++) {
    const T a = convert<T>(read<S>(x + 2 * c)), b = convert<T>(read<S>(x + 2 * c + 1));
    write(out + 2 * c, narrow<S>(a * cos[c] - b * sin[c]));
    write(out + 2 * c + 1, narrow<S>(a * sin[c] + b * cos[c]));
  }
}

template <class T> void rotate(const Rotary& r) {
  with_float_type(r.type, [&](auto s) {
    using S = decltype(s);
    const int64_t half = r.rotary_dim / 2;
    for (int64_t b = 0; b < r.batch; b++)
      for (int64_t t = 0; t < r.tokens; t++) {
        const T* cos = static_cast<const T*>(r.cos) + b * r.table_batch_stride + t * half;
        const T* sin = static_cast<const T*>(r.sin) + b * r.table_batch_stride + t * half;
        for (int64_t h = 0; h < r.heads; h++) {
          const S* x =
              reinterpret_cast<const S*>(r.x + b * r.x_strides.batch + h * r.x_strides.head + t * r.x_strides.token);
          S* out =
              reinterpret_cast<S*>(r.out + b * r.out_strides.batch + h * r.out_strides.head + t * r.out_strides.token);
          if (r.interleaved) rotate_neighbours<T, S>(x, out, cos, sin, half);
          else rotate_halves<T, S>(x, out, cos, sin, half);
          memcpy(out + r.rotary_dim, x + r.rotary_dim, size_t(r.head_dim - r.rotary_dim) * sizeof(S));
        }
      }
  });
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
