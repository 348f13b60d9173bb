// pack.h: a block of keys or values as contiguous panels of `tile_height` scalars, converted to the compute type, so
// that one step of a tile reads its scalars side by side. Worth its cost where several row tiles share the tokens.
#pragma once

#include "keys.h"
#include "shuffle.h"
#include "tile.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Scalars from one step of a panel to the next: a full tile's, and padding up to whole vectors.
template <class T> constexpr int panel_width = (tile_height + width<T> - 1) / width<T> * width<T>;

template <class T> constexpr int64_t key_panels_size(int64_t head_dim) {
  return (rows_block + tile_height - 1) / tile_height * head_dim * panel_width<T>;
}
template <class T> constexpr int64_t value_panels_size(int64_t v_head_dim) {
  return (v_head_dim / tile_height + 5) * rows_block * panel_width<T>;
}

// Panels of tile_height keys: panel[d][key]. Keys past the last repeat it.
template <class T, class S> void pack_keys_of(const TokenRows& tokens, int head_dim, T* panels) {
  constexpr int w = width<T>, vectors = panel_width<T> / w;
  for (int first = 0; first < tokens.count; first += tile_height) {
    const S* rows[panel_width<T>];
    T scales[panel_width<T>];
    for (int i = 0; i < panel_width<T>; i++) {
      const int key = first + i < tokens.count ? first + i : tokens.count - 1;
      rows[i] = reinterpret_cast<const S*>(tokens.row[key]);
      scales[i] = sizeof(S) == 1 ? T(tokens.scale[key]) : T(1);
    }
    int d = 0;
    for (; d + w <= head_dim; d += w, panels += w * panel_width<T>) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) {
        Vec<T> square[w];
#pragma GCC unroll 16
        for (int i = 0; i < w; i++) {
          const int key = v * w + i;
          square[i] = key < tile_height ? load_as<T, S>(rows[key] + d) : Vec<T>{};
          if (sizeof(S) == 1) square[i] *= scales[key];
        }
        transpose<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < w; i++) store(panels + i * panel_width<T> + v * w, square[i]);
      }
    }
    for (; d < head_dim; d++, panels += panel_width<T>)
      for (int i = 0; i < tile_height; i++) panels[i] = convert<T>(read<S>(rows[i] + d)) * scales[i];
  }
}

// Panels of the channels that `cover` names: panel[key][channel]. Returns whether every value is finite.
template <class T, class S> bool pack_values_of(const TokenRows& tokens, int v_head_dim, T* panels) {
  constexpr int w = width<T>;
  Vec<T> poison{};  // 0, or NaN once a value was not finite
  for (int j = 0; j < tokens.count; j++) {
    const S* row = reinterpret_cast<const S*>(tokens.row[j]);
    T* to = panels + j * panel_width<T>;
    cover(v_head_dim, [&](auto height, int first) {
      for (int c = 0; c < height.value; c += w) {
        const int left = v_head_dim - first - c;
        Vec<T> x = left >= w ? load_as<T, S>(row + first + c) : load_as<T, S>(row + first + c, left);
        if (sizeof(S) == 1) x *= T(tokens.scale[j]);
        poison += x * T(0);
        store(to + c, x);
      }
      to += rows_block * panel_width<T>;
    });
  }
  return fold<T, 1>(poison, [](Vec<T> a, Vec<T> b) { return a + b; })[0] == 0;
}

template <class T> void pack_keys(const TokenRows& tokens, int head_dim, T* panels) {
  with_cache_type(tokens.type, [&](auto s) { pack_keys_of<T, decltype(s)>(tokens, head_dim, panels); });
}
template <class T> bool pack_values(const TokenRows& tokens, int v_head_dim, T* panels) {
  bool finite = false;
  with_cache_type(tokens.type, [&](auto s) { finite = pack_values_of<T, decltype(s)>(tokens, v_head_dim, panels); });
  return finite;
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
