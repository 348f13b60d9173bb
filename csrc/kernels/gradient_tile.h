// gradient_tile.h: what a tile of rows and a block of keys give each other in the backward pass.
//
// With weights P = softmax(S) and dP = dout . V^T, the gradient of the scores is dS = P * (dP - delta), and
//   dq = scale * dS . K,   dk = scale * dS^T . q,   dv = P^T . dout
// Scores and weights are computed anew from the lse, so that nothing of the size of S is kept (Dao et al. 2022,
// arXiv:2205.14135). S^T, dP^T and dq^T are products with rows in the lanes, as in the forward pass; dk and dv are
// products with channels in the lanes, whose scalars are read from P^T and dS^T where those lie.
#pragma once

#include "gradient_ahead.h"
#include "gradient_mask.h"
#include "gradient_rows.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Tiles that take a block at once: the sums of dk and dv are loaded and stored once for all of them.
constexpr int tiles_at_once = 2;

// A block of keys.
template <class T> struct GradientBlock {
  KeyBlock* keys;
  int64_t begin;
  T *k, *v;     // panels of keys (pack.h)
  T* k_values;  // K again, as panels of channels
  T *dk, *dv;   // sums, [panel of `lanes` channels][key][channel of the panel]
  bool k_finite;
};

template <class T> class GradientTileLoop {
 public:
  static constexpr int lanes = tile_lanes<T>, w = width<T>;

  static int64_t sums_size(int64_t channels) { return (channels + lanes - 1) / lanes * score_rows * lanes; }

  struct Buffers {
    Buffers(Scratch& scratch) : bias(scratch.take<T>(score_rows * lanes)), slope(scratch.take<T>(score_rows * lanes)) {
      for (int g = 0; g < tiles_at_once; g++) {
        p[g] = scratch.take<T>(score_rows * lanes);
        ds[g] = scratch.take<T>(score_rows * lanes);
      }
    }

    T *p[tiles_at_once], *ds[tiles_at_once];  // P^T, dS^T: [key][lane]
    T *const bias, *const slope;
  };

  GradientTileLoop(const Gradients& g, const GradientTask& task, const Buffers& buffers,
                   const GradientProgram<T>& program)
      : g_(g),
        a_(*g.attention),
        head_(a_, *task.sequence, task.kv_head),
        head_dim_(int(a_.head_dim)),
        v_head_dim_(int(a_.v_head_dim)),
        buffers_(buffers),
        program_(program) {}

  // Adds a block and `count` tiles to each other. row_sums: [tile][lane], for masks.
  void add(GradientTile<T>* tiles, int count, const GradientBlock<T>& block, T* row_sums, GradientAhead& ahead) const {
    TileRange ranges[tiles_at_once];
    int from = rows_block, to = 0;
    for (int g = 0; g < count; g++) {
      T* const sums = row_sums + g * lanes;
      ranges[g] = tiles[g].rows.count > w ? add_queries<2>(tiles[g], block, g, sums, ahead)
                                          : add_queries<1>(tiles[g], block, g, sums, ahead);
      if (ranges[g].skip()) continue;
      from = int(min(from, ranges[g].from)), to = int(max(to, ranges[g].to));
    }
    if (from >= to) return;
    add_keys(tiles, count, ranges, from, to, buffers_.p, &GradientTile<T>::dout_rows, v_head_dim_, block.dv, ahead);
    add_keys(tiles, count, ranges, from, to, buffers_.ds, &GradientTile<T>::q_rows, head_dim_, block.dk, ahead);
  }

 private:
  // P^T and dS^T of tile g, from the range's first key on and up to whole panels; adds to its dq.
  template <int N>
  TileRange add_queries(GradientTile<T>& tile, const GradientBlock<T>& block, int g, T* row_sums,
                        GradientAhead& ahead) const {
    const TileRange range = tile_range(head_, tile.rows, block.begin, block.keys->count, buffers_.bias,
                                       program_.cover(tile.rows, block.begin));
    if (range.skip()) return range;
    const int n = range.keys();
    const bool slopes = a_.softcap > 0 || program_.has_slopes();
    T *const s = buffers_.p[g], *const ds = buffers_.ds[g];
    multiply_panels<N>(block.k, tile.q, head_dim_, range, s, ahead);
    if (!range.whole() || in_natural_units(a_)) {
      ScoreBlock<T, N, TileCoordinates> scores = score_block<N>(tile.rows, range, block.begin, s, buffers_.bias);
      if (slopes) scores.slope = buffers_.slope;
      const BlockProgram<T> program = program_.of(tile.rows, GradientProgram<T>::taken, range);
      if (program.scores || program.hides) scores.program = &program;
      Vec<T> top[N];
      scores.apply(a_, head_.sequence, head_.group, top);
    }
    multiply_panels<N>(block.v, tile.dout, v_head_dim_, range, ds, ahead);
    if (tile.has_rest) to_gradients<N, true, true>(tile, s, ds, n);
    else if (range.whole()) to_gradients<N, false, false>(tile, s, ds, n);
    else to_gradients<N, false, true>(tile, s, ds, n);
    if (g_.dmask) add_mask_gradient(g_, head_, tile.rows, block.begin + range.from, n, ds, row_sums);
    if (slopes) multiply_slopes<N>(ds, n);
    const int whole = (n + tile_height - 1) / tile_height * tile_height;
    for (int i = n * lanes; i < whole * lanes; i += w) store(s + i, Vec<T>{}), store(ds + i, Vec<T>{});

    if (!range.whole() && !block.k_finite) add_to_dq<N, true>(tile, block, range.from, n, ds, ahead);
    else add_to_dq<N, false>(tile, block, range.from, n, ds, ahead);
    tile.started = true;
    return range;
  }

  // to[key][lane] = panels . rows, for the keys of the range and up to whole panels.
  template <int N>
  void multiply_panels(const T* panels, const T* rows, int depth, const TileRange& range, T* to,
                       GradientAhead& ahead) const {
    for (int key = range.from; key < range.to; key += tile_height, to += tile_height * lanes) {
      ahead.fetch();
      multiply_key_panels<N>(panels, rows, depth, key, key + 1,
                             [=](int k, int v, Vec<T> sums) { store(to + k * lanes + v * w, sums); });
    }
  }

  // Scores to weights, and dP to dS. masked: a score of -infinity is of a key that is not attended: whatever the row,
  // or the value, holds, its weight and gradient are 0.
  template <int N, bool has_rest, bool masked>
  void to_gradients(const GradientTile<T>& tile, T* s, T* ds, int n) const {
    Vec<T> shift[N], rest[N], delta[N];
    for (int v = 0; v < N; v++) {
      shift[v] = load(tile.shift + v * w), rest[v] = load(tile.rest + v * w);
      delta[v] = load(tile.delta + v * w);
    }
    for (int t = 0; t < n; t++, s += lanes, ds += lanes)
      for (int v = 0; v < N; v++) {
        const Vec<T> score = load(s + v * w), x = score - shift[v];
        Vec<T> p = exp2<T>(has_rest ? x - rest[v] : x);
        if (masked) p = score == -infinity<T> ? Vec<T>{} : p;
        store(s + v * w, p);
        const Vec<T> gradient = p * (load(ds + v * w) - delta[v]);
        store(ds + v * w, masked ? (p == 0 ? Vec<T>{} : gradient) : gradient);
      }
  }

  // From gradients of what the functions of the score give to those of what they take. A slope of a masked score may
  // be anything.
  template <int N> void multiply_slopes(T* ds, int n) const {
    const T* slope = buffers_.slope;
    for (int t = 0; t < n; t++, ds += lanes, slope += lanes)
      for (int v = 0; v < N; v++) {
        const Vec<T> x = load(ds + v * w), product = x * load(slope + v * w);
        store(ds + v * w, x == 0 ? x : product);
      }
  }

  // dq^T += K^T . dS^T over the n keys at `from`.
  template <int N, bool select>
  void add_to_dq(const GradientTile<T>& tile, const GradientBlock<T>& block, int from, int n, const T* ds,
                 GradientAhead& ahead) const {
    const T* panel = block.k_values + from * panel_width<T>;
    const auto unchanged = [](int, Vec<T> x) { return x; };
    cover(head_dim_, [&](auto height, int c) {
      constexpr int M = height.value;
      ahead.fetch();
      values_tile<M, N, select>([=](int k, int i) { return panel[k * panel_width<T> + i]; }, ds, n, tile.dq + c * lanes,
                                tile.started, unchanged);
      panel += rows_block * panel_width<T>;
    });
  }

  // sums[key][channel] += sum over the rows of all tiles of weights[key][row] * rows[row][channel], for keys [from, to)
  // of the block, up to whole tiles. A tile's weights begin with its range.
  void add_keys(const GradientTile<T>* tiles, int count, const TileRange* ranges, int from, int to, T* const* weights,
                T* GradientTile<T>::*rows, int channels, T* sums, GradientAhead& ahead) const {
    for (int c = 0; c < channels; c += lanes)
      for (int key = from; key < to; key += tile_height) {
        ahead.fetch();
        T* const at = sums + (c / lanes * score_rows + key) * lanes;
        if (channels - c > w) add_keys_tile<2>(tiles, count, ranges, key, weights, rows, c, at);
        else add_keys_tile<1>(tiles, count, ranges, key, weights, rows, c, at);
      }
  }
  template <int N>
  GQA_INLINE void add_keys_tile(const GradientTile<T>* tiles, int count, const TileRange* ranges, int key,
                                T* const* weights, T* GradientTile<T>::*rows, int c, T* sums) const {
    constexpr int M = tile_height;
    Tile<T, M, N> sum;
    each<M, N>([&](int i, int v) { sum.at[i][v] = load(sums + i * lanes + v * w); });
    for (int g = 0; g < count; g++) {
      const TileRange& range = ranges[g];
      if (key < range.from || key >= range.to) continue;
      const T *const x = weights[g] + (key - range.from) * lanes, *const row = tiles[g].*rows + c * lanes;
      const auto a = [=](int k, int i) { return x[i * lanes + k]; };
      if (!range.whole() && !tiles[g].finite) multiply_selected(sum, a, row, tiles[g].rows.count);
      else multiply(sum, a, row, tiles[g].rows.count);
    }
    each<M, N>([&](int i, int v) { store(sums + i * lanes + v * w, sum.at[i][v]); });
  }

  const Gradients& g_;
  const Attention& a_;
  const HeadRows head_;
  const int head_dim_, v_head_dim_;
  const Buffers& buffers_;
  const GradientProgram<T>& program_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
