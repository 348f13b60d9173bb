// gradient_rows.h: rows of q and dout on their way into the backward pass, and rows of dq on their way out.
#pragma once

#include "gradient_program.h"
#include "scratch.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// A tile of rows. It is kept in two forms: transposed, for the products with rows in the lanes (scores, dP and dq), and
// as panels of `lanes` channels, for those with channels in the lanes (dk and dv).
template <class T> struct GradientTile {
  LaneRows rows;
  T *q, *dout;                     // [channel][lane]; q scaled as scores want it
  T *q_rows, *dout_rows;           // [panel][row][channel of the panel]
  T* dq;                           // [head_dim][lane], without the scale; undefined until `started`
  T *shift, *rest;                 // [lane]: a weight is 2^(score - shift - rest)
  T* delta;                        // [lane]: dout . out - dlse, which is what all dP of a row have in common
  bool has_rest, finite, started;  // finite: all of q and dout is
};

// The tiles of a task.
template <class T> class GradientRows {
 public:
  static constexpr int lanes = tile_lanes<T>, w = width<T>;
  // A float of an lse beyond this is too coarse for weights: the denominator is computed anew.
  static constexpr T coarse_lse = 32;

  static int64_t panels_size(int64_t channels) { return (channels + lanes - 1) / lanes * lanes * lanes; }

  struct Buffers {
    Buffers(const TaskShape& shape, Scratch& scratch)
        : count((shape.rows + lanes - 1) / lanes),
          tiles(scratch.take<GradientTile<T>>(count)),
          q(scratch.take<T>(count * shape.head_dim * lanes)),
          dout(scratch.take<T>(count * shape.v_head_dim * lanes)),
          q_rows(scratch.take<T>(count * panels_size(shape.head_dim))),
          dout_rows(scratch.take<T>(count * panels_size(shape.v_head_dim))),
          dq(scratch.take<T>(count * shape.head_dim * lanes)),
          numbers(scratch.take<T>(count * 3 * lanes)),
          zeros(scratch.take<double>(max(shape.head_dim, shape.v_head_dim))),
          panels(scratch.take<T>(key_panels_size<T>(shape.head_dim))),
          s(scratch.take<T>(score_rows * lanes)),
          bias(scratch.take<T>(score_rows * lanes)),
          block(scratch.take<KeyBlock>(1)) {}

    const int64_t count;
    GradientTile<T>* const tiles;
    T *const q, *const dout, *const q_rows, *const dout_rows, *const dq, *const numbers;
    double* const zeros;                     // what stands for rows without keys
    T *const panels, *const s, *const bias;  // to compute denominators
    KeyBlock* const block;
  };

  GradientRows(const Gradients& g, const GradientTask& task, const Buffers& buffers, const GradientProgram<T>& program)
      : g_(g),
        a_(*g.attention),
        task_(task),
        head_(a_, *task.sequence, task.kv_head),
        head_dim_(int(a_.head_dim)),
        v_head_dim_(int(a_.v_head_dim)),
        buffers_(buffers),
        program_(program) {}

  int64_t count() const { return (task_.row_end - task_.row_begin + lanes - 1) / lanes; }

  GradientTile<T>& tile(int64_t t) const { return buffers_.tiles[t]; }

  // Reads everything about the rows of tile t.
  void start(int64_t t) const {
    GradientTile<T>& tile = buffers_.tiles[t];
    tile = place(t);
    program_.load_rows(tile.rows);
    const bool dead_rows = read_lse(tile);
    const char *q[lanes], *dout[lanes];
    const char* const zeros = reinterpret_cast<const char*>(buffers_.zeros);
    if (dead_rows) memset(buffers_.zeros, 0, size_t(max(head_dim_, v_head_dim_)) * sizeof(double));
    for (int r = 0; r < lanes; r++) {
      const bool dead = tile.shift[r] == infinity<T>;
      q[r] = dead ? zeros : head_.at(a_.q, a_.q_strides, tile.rows.row(r));
      dout[r] = dead ? zeros : head_.at(g_.dout.data, g_.dout.strides, tile.rows.row(r));
      tile.delta[r] = dead ? 0 : delta_of(tile.rows.row(r), dout[r]);
    }
    const int vectors = tile.rows.count > w ? 2 : 1;
    with_float_type(a_.q_type, [&](auto s) {
      using S = decltype(s);
      transpose_rows<T, S>(q, vectors, head_dim_, query_scale<T>(a_), tile.q);
      tile.finite = to_panels<S>(q, tile.rows.count, head_dim_, tile.q_rows);
    });
    with_float_type(g_.dout.type, [&](auto s) {
      using S = decltype(s);
      transpose_rows<T, S>(dout, vectors, v_head_dim_, T(1), tile.dout);
      tile.finite &= to_panels<S>(dout, tile.rows.count, v_head_dim_, tile.dout_rows);
    });
    if (tile.has_rest) compute_denominators(tile);
    if (task_.dsinks) add_to_sinks(tile);
  }

  // Writes dq of tile t.
  void end(int64_t t) const {
    const GradientTile<T>& tile = buffers_.tiles[t];
    const T scale = T(a_.scale);
    for (int r = 0; r < tile.rows.count; r += w)
      for (int c = 0; c < head_dim_; c += w) {
        Vec<T> square[w];
#pragma GCC unroll 16
        for (int i = 0; i < w; i++)
          square[i] = tile.started && c + i < head_dim_ ? load(tile.dq + (c + i) * lanes + r) * scale : Vec<T>{};
        transpose<T>(square);
        with_float_type(g_.dq.type, [&](auto s) {
          using S = decltype(s);
          for (int i = 0; i < w && r + i < tile.rows.count; i++)
            store_channels<S, T>(head_.at(g_.dq.data, g_.dq.strides, tile.rows.first + r + i) + c * sizeof(S),
                                 sizeof(S), square[i], head_dim_ - c);
        });
      }
  }

  // dq of a tile whose rows attend nothing, and that was never started.
  void end_unstarted(int64_t t) const {
    buffers_.tiles[t] = place(t);
    end(t);
    if (task_.dsinks && g_.dlse.data) add_to_lone_sinks(buffers_.tiles[t]);
  }

 private:
  GradientTile<T> place(int64_t t) const {
    const int64_t first = task_.row_begin + t * lanes;
    T* const numbers = buffers_.numbers + t * 3 * lanes;
    return {{first, int(min(lanes, task_.row_end - first))},
            buffers_.q + t * head_dim_ * lanes,
            buffers_.dout + t * v_head_dim_ * lanes,
            buffers_.q_rows + t * panels_size(head_dim_),
            buffers_.dout_rows + t * panels_size(v_head_dim_),
            buffers_.dq + t * head_dim_ * lanes,
            numbers,
            numbers + lanes,
            numbers + 2 * lanes,
            false,
            false,
            false};
  }

  // shift, and whether there is a rest. Rows without keys, and lanes past the last row, are dead: their shift is
  // infinity, so that all their weights are 0. Returns whether there are any.
  bool read_lse(GradientTile<T>& tile) const {
    bool dead_rows = false;
    for (int r = 0; r < lanes; r++) {
      const T lse = read<T>(head_.at(g_.lse.data, g_.lse.strides, tile.rows.row(r)));
      const bool dead = r >= tile.rows.count || lse == -infinity<T>;
      tile.shift[r] = dead ? infinity<T> : to_base2<T>(lse);
      tile.rest[r] = 0;
      tile.has_rest |= !dead && (lse > coarse_lse || lse < -coarse_lse);
      dead_rows |= dead;
    }
    return dead_rows;
  }

  T delta_of(int64_t row, const char* dout) const {
    T delta = 0;
    with_float_type(g_.dout.type, [&](auto x) {
      with_float_type(g_.out.type, [&](auto y) {
        delta = dot(reinterpret_cast<const decltype(x)*>(dout),
                    reinterpret_cast<const decltype(y)*>(head_.at(g_.out.data, g_.out.strides, row)));
      });
    });
    return g_.dlse.data ? delta - dlse_of(row) : delta;
  }
  T dlse_of(int64_t row) const {
    T dlse = 0;
    with_float_type(g_.dlse.type, [&](auto s) {
      dlse = convert<T>(read<decltype(s)>(head_.at(g_.dlse.data, g_.dlse.strides, row)));
    });
    return dlse;
  }
  template <class X, class Y> T dot(const X* x, const Y* y) const {
    Vec<T> sum{};
    for (int c = 0; c < v_head_dim_; c += w)
      sum += load_row<T, X>(x + c, v_head_dim_ - c) * load_row<T, Y>(y + c, v_head_dim_ - c);
    return fold<T, 1>(sum, [](Vec<T> a, Vec<T> b) { return a + b; })[0];
  }

  // Rows as panels of channels; channels past the last are 0. Returns whether every value is finite.
  template <class S> static bool to_panels(const char* const* rows, int count, int channels, T* panels) {
    Vec<T> poison{};  // 0, or NaN once a value was not finite
    for (int r = 0; r < count; r++) {
      const S* const row = reinterpret_cast<const S*>(rows[r]);
      for (int c = 0; c < channels; c += w) {
        const Vec<T> x = load_row<T, S>(row + c, channels - c);
        poison += x * T(0);
        store(panels + (c / lanes * lanes + r) * lanes + c % lanes, x);
      }
    }
    return fold<T, 1>(poison, [](Vec<T> a, Vec<T> b) { return a + b; })[0] == 0;
  }

  // (m, l) of the rows, as the forward pass has them, from the scores of all keys: shift and rest.
  void compute_denominators(GradientTile<T>& tile) const {
    T m[lanes], l[lanes];
    for (int r = 0; r < lanes; r++) m[r] = -infinity<T>, l[r] = 0;
    if (tile.rows.count > w) add_scores<2>(tile, m, l);
    else add_scores<1>(tile, m, l);
    for (int r = 0; r < tile.rows.count; r++) {
      if (tile.shift[r] == infinity<T>) continue;
      const Denominator<T> d = denominator(a_, head_.head(tile.rows.row(r)), m[r], l[r]);
      tile.shift[r] = d.sum == 0 ? infinity<T> : d.top;
      tile.rest[r] = d.sum == 0 ? T(0) : log2_of(d.sum);
    }
  }
  template <int N> void add_scores(const GradientTile<T>& tile, T* m, T* l) const {
    const Sequence& sequence = head_.sequence;
    const int64_t begin = attended(a_, sequence, head_.query(tile.rows.first)).begin,
                  end = attended(a_, sequence, head_.query(tile.rows.last())).end;
    KeyWalk walk(a_, sequence, task_.kv_head);
    for (int64_t key = begin / gradient_block * gradient_block; key < end; key += gradient_block) {
      walk.fill(*buffers_.block, key, min(sequence.keys, key + gradient_block));
      const TileRange range =
          tile_range(head_, tile.rows, key, buffers_.block->count, buffers_.bias, program_.cover(tile.rows, key));
      if (range.skip()) continue;
      program_.load_keys(GradientProgram<T>::counted, key, buffers_.block->count);
      pack_keys(buffers_.block->keys(), head_dim_, buffers_.panels);
      T* const s = buffers_.s;
      multiply_key_panels<N>(buffers_.panels, tile.q, head_dim_, range.from, range.to,
                             [=](int k, int v, Vec<T> sums) { store(s + k * lanes + v * w, sums); });
      auto scores = score_block<N>(tile.rows, range, key, s, buffers_.bias);
      const BlockProgram<T> program = program_.of(tile.rows, GradientProgram<T>::counted, range);
      if (program.scores || program.hides) scores.program = &program;
      Vec<T> top[N], alpha[N];
      scores.apply(a_, sequence, head_.group, top);
      scores.weights(top, m, l, alpha);
    }
  }

  // A sink is one more key, of weight 2^(sink - shift - rest), whose value is 0.
  void add_to_sinks(const GradientTile<T>& tile) const {
    for (int r = 0; r < tile.rows.count; r++) {
      if (tile.shift[r] == infinity<T>) continue;
      const int64_t row = tile.rows.row(r), head = head_.head(row);
      const T weight = exp2_of((to_base2<T>(a_.sinks[head]) - tile.shift[r]) - tile.rest[r]);
      if (weight != 0) task_.dsinks[row % head_.group] -= double(weight) * double(tile.delta[r]);
    }
  }

  // A sink that is all of a row's lse has weight 1, and the output has no part in its gradient.
  void add_to_lone_sinks(const GradientTile<T>& tile) const {
    for (int r = 0; r < tile.rows.count; r++) {
      const int64_t row = tile.rows.row(r);
      if (a_.sinks[head_.head(row)] != -infinity<double>) task_.dsinks[row % head_.group] += double(dlse_of(row));
    }
  }

  const Gradients& g_;
  const Attention& a_;
  const GradientTask& task_;
  const HeadRows head_;
  const int head_dim_, v_head_dim_;
  const Buffers& buffers_;
  const GradientProgram<T>& program_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
