// channels.h: attention with channels in the lanes, for few rows (decoding, short speculative chunks).
//
// The time goes into reading the cache, so it is read once, in place and in its own type, for all rows; a group of up
// to 4 rows shares each load.
#pragma once

#include "integers.h"
#include "scratch.h"
#include "state.h"

namespace gqa {
namespace GQA_ISA {
namespace {

template <class T> class ChannelsInLanes {
 public:
  static constexpr int w = width<T>, max_group = w < 4 ? w : 4;
  static constexpr int block_keys = sizeof(T) == 8 ? 256 : channels_block;  // less where keys are widened into scratch

  struct Buffers {
    Buffers(const TaskShape& shape, Scratch& scratch)
        : rows(shape.rows + max_group),
          q_stride((shape.head_dim + w - 1) / w * w),
          zeros_bytes(8 * most(shape.head_dim, shape.v_head_dim)),
          q(scratch.take<T>(rows * q_stride)),
          m(scratch.take<T>(rows * w)),
          l(scratch.take<T>(rows * w)),
          s(scratch.take<T>(block_keys * max_group + w)),
          bias(scratch.take<T>(block_keys * max_group + w)),
          wide_k(scratch.take<double>(sizeof(T) == 8 ? block_keys * shape.head_dim : 0)),
          wide_v(scratch.take<double>(sizeof(T) == 8 ? block_keys * shape.v_head_dim : 0)),
          rounded(rows, sizeof(T) == 4 ? shape.head_dim : 0, scratch),
          zeros(scratch.take<char>(zeros_bytes)),
          block(scratch.take<KeyBlock>(1)),
          states(States<T>::at(scratch.take<char>(States<T>::bytes(rows, shape.v_head_dim)), rows, shape.v_head_dim)) {}

    const int64_t rows, q_stride, zeros_bytes;  // rows: with room for the padding of the last group
    T* const q;                                 // [row][channel], scaled, padded with zeros
    T *const m, *const l;                       // [first row of a group][lane]
    T *const s, *const bias;                    // [step][lane]
    double *const wide_k, *const wide_v;
    const RoundedRows rounded;  // q for keys of int8
    char* const zeros;
    KeyBlock* const block;
    const States<T> states;
  };

  ChannelsInLanes(const Attention& a, const Task& task, const Buffers& buffers)
      : a_(a),
        task_(task),
        sequence_(*task.sequence),
        group_(a.query_heads / a.kv_heads),
        rows_(int(task.row_end - task.row_begin)),
        head_dim_(int(a.head_dim)),
        v_head_dim_(int(a.v_head_dim)),
        buffers_(buffers),
        block_(*buffers.block) {
    memset(buffers.zeros, 0, size_t(buffers.zeros_bytes));
    load_queries();
  }

  // Attends keys [begin, end) and calls done(first row, rows, states).
  template <class Done> void run(int64_t begin, int64_t end, Done done) {
    buffers_.states.clear(buffers_.rows);
    for (int64_t i = 0; i < buffers_.rows * w; i++) buffers_.m[i] = -infinity<T>, buffers_.l[i] = 0;
    KeyWalk walk(a_, sequence_, task_.kv_head);
    while (begin < end) {
      const int64_t next = walk.fill(block_, begin, least(end, (begin / block_keys + 1) * block_keys));
      prepare();
      for (int r = 0; r < rows_; r += group_at(r)) {
        if (rows_ - r > 2) add<max_group>(begin, r);
        else if (rows_ - r == 2) add<2>(begin, r);
        else add<1>(begin, r);
      }
      begin = next;
    }
    end_rows();
    done(task_.row_begin, int64_t(rows_), buffers_.states);
  }

 private:
  // Rows that share a pass over a block: 1, 2 or 4; the last of 4 may be padding.
  int group_at(int r) const { return rows_ - r > 2 ? max_group : rows_ - r; }

  int64_t query_of(int r) const { return (task_.row_begin + least(r, rows_ - 1)) / group_; }
  int64_t head_of(int r) const { return task_.kv_head * group_ + (task_.row_begin + least(r, rows_ - 1)) % group_; }

  void load_queries() const {
    const T scale = query_scale<T>(a_);
    for (int64_t i = 0; i < buffers_.rows * buffers_.q_stride; i++) buffers_.q[i] = 0;
    with_float_type(a_.q_type, [&](auto s) {
      using S = decltype(s);
      for (int r = 0; r < rows_; r++) {
        const S* q = reinterpret_cast<const S*>(at_row(a_.q, a_.q_strides, sequence_, head_of(r), query_of(r)));
        T* to = buffers_.q + r * buffers_.q_stride;
        for (int d = 0; d < head_dim_; d += w)
          store(to + d, load_row<T, S>(q + d, int(least(w, head_dim_ - d))) * scale);
      }
    });
  }

  // For double, other types are widened into scratch; for float, the products widen in registers, or are of integers.
  void prepare() {
    if constexpr (sizeof(T) == 4) {
      if (block_.k_type != DType::i8 || rounded_ || !integers()) return;
      for (int r = 0; r < buffers_.rows; r++)
        buffers_.rounded.round(r, buffers_.q + r * buffers_.q_stride, buffers_.q_stride);
      rounded_ = true;
      return;
    }
    widen_rows(block_.k, block_.k_scale, block_.k_type, head_dim_, buffers_.wide_k);
    widen_rows(block_.v, block_.v_scale, block_.v_type, v_head_dim_, buffers_.wide_v);
    block_.k_type = block_.v_type = DType::f64;
  }
  bool integers() const {
    const Interval first = attended(a_, sequence_, query_of(0)), last = attended(a_, sequence_, query_of(rows_ - 1));
    return last.end - first.begin >= keys_for_integers && head_dim_ <= most_channels_for_integers;
  }
  void widen_rows(const char** rows, const float* scales, DType type, int channels, double* to) const {
    if (type == DType::f64) return;
    with_cache_type(type, [&](auto s) {
      using S = decltype(s);
      for (int j = 0; j < block_.count; j++, to += channels) {
        const double scale = type == DType::i8 ? scales[j] : 1;
        for (int c = 0; c < channels; c++) to[c] = convert<double>(read<S>(rows[j] + c * sizeof(S))) * scale;
        rows[j] = reinterpret_cast<const char*>(to);
      }
    });
  }
  template <class F> static void with_direct_type(DType type, F f) {
    if constexpr (sizeof(T) == 8) f(double());
    else if (type == DType::i8) f(int8_t());
    else if (type == DType::f16) f(f16());
    else if (type == DType::bf16) f(bf16());
    else f(float());
  }

  // Adds the block, whose first key is `begin`, to the group of R rows from r on.
  template <int R> void add(int64_t begin, int r) const {
    const Interval first = attended(a_, sequence_, query_of(r)), last = attended(a_, sequence_, query_of(r + R - 1));
    const int from = within_block(first.begin - begin), to = within_block(last.end - begin), n = to - from;
    if (n <= 0) return;
    const Streams<streams<T, R>> keys(n);
    if (a_.mask && !load_mask<R>(r, begin + from, keys)) return;

    T *const s = buffers_.s, *const o = buffers_.states.o + r * buffers_.states.stride;
    const int64_t stride = buffers_.states.stride;
    const Scores<T, 1> scores{s, keys.steps, w};
    multiply_block_keys<R>(r, keys, from);
    if (block_.k_type == DType::i8) multiply_scales<R, false>(block_.k_scale + from, keys);
    if (a_.softcap > 0) scores.soft_cap(T(a_.softcap));
    if (a_.mask) scores.add(buffers_.bias);
    const bool edges = first.begin < last.begin || first.end < last.end;
    if (edges || n % streams<T, R> != 0) mask_edges<R>(scores, begin + from, r, keys);

    Vec<T> top[1], alpha[1];
    scores.maximum(top);
    top[0] = fold<T, R>(top[0], [](Vec<T> x, Vec<T> y) { return max(x, y); });
    scores.weights(top, buffers_.m + r * w, buffers_.l + r * w, alpha);
    if (block_.v_type == DType::i8) multiply_scales<R, true>(block_.v_scale + from, keys);

    for (int i = 0; i < R; i++)
      for (T* x = o + i * stride; x < o + (i + 1) * stride; x += w) store(x, load(x) * alpha[0][i]);
    const bool select = (edges || a_.mask) && !values_are_finite<T>(block_, v_head_dim_);
    const StreamRows<streams<T, R>> rows(keys, block_.v + from, buffers_.zeros);
    with_direct_type(block_.v_type, [&](auto type) {
      const auto add_to = select ? add_values_selecting<T, decltype(type), R> : add_values<T, decltype(type), R>;
      add_to(o, stride, v_head_dim_, keys, rows, s);
    });
  }

  // The scores of the group from r on with the keys of the block from `from` on.
  template <int R> void multiply_block_keys(int r, const Streams<streams<T, R>>& keys, int from) const {
    const StreamRows<streams<T, R>> k(keys, block_.k + from, buffers_.zeros);
    if constexpr (sizeof(T) == 4)
      if (rounded_ && block_.k_type == DType::i8)
        return multiply_keys<R>(buffers_.rounded, r, head_dim_, keys, k, buffers_.s);
    with_direct_type(block_.k_type, [&](auto type) {
      const T* q = buffers_.q + r * buffers_.q_stride;
      multiply_keys<T, decltype(type), R>(q, buffers_.q_stride, head_dim_, keys, k, buffers_.s);
    });
  }

  // Masks what is outside a row's interval, or past the end of a stream. Key 0 is the first of the streams.
  template <int R>
  void mask_edges(const Scores<T, 1>& scores, int64_t begin, int r, const Streams<streams<T, R>>& keys) const {
    constexpr int halves = Streams<streams<T, R>>::halves;
    for (int h = 0; h < halves; h++) {
      T key[w], low[w], high[w];
      for (int i = 0; i < w; i++) {
        const Interval interval = attended(a_, sequence_, query_of(r + i % R));
        const int stream = i / R, end = h + 1 < halves ? keys.half(stream, h + 1) : keys.first[stream + 1];
        key[i] = T(keys.half(stream, h));
        low[i] = T(most(interval.begin - begin, 0));
        high[i] = T(least(interval.end - begin, end));
      }
      const Scores<T, 1> half{scores.s + h * w, (keys.steps + halves - 1 - h) / halves, halves * w};
      half.mask(key, low, high, 0, half.steps);
    }
  }

  // Multiplies the scores, or the weights, of each key with its scale. A weight of 0 stays 0 whatever the scale holds.
  template <int R, bool weights> void multiply_scales(const float* scales, const Streams<streams<T, R>>& keys) const {
    keys.template each_step<T>(
        scales, [&](int t, Vec<T> scale) __attribute__((always_inline)) {
          T* s = buffers_.s + t * w;
          const Vec<T> x = load(s), scaled = x * scale;
          store(s, weights ? (x == 0 ? x : scaled) : scaled);
        });
  }

  // The mask of the group and the streams' keys as a bias that lies as the scores do; false if it hides all of them.
  template <int R> bool load_mask(int r, int64_t key, const Streams<streams<T, R>>& keys) const {
    bool any = false;
    for (int i = 0; i < keys.steps * w; i++) buffers_.bias[i] = -infinity<T>;
    for (int i = 0; i < R; i++) {
      T bias[block_keys];
      any |= mask_row(a_, sequence_, head_of(r + i), query_of(r + i), key, keys.first[streams<T, R>], bias);
      for (int stream = 0; stream < streams<T, R>; stream++)
        for (int t = 0; t < keys.size(stream); t++) buffers_.bias[t * w + stream * R + i] = bias[keys.key(stream, t)];
    }
    return any;
  }

  // The rows' m and l; l is summed over the streams.
  void end_rows() const {
    for (int first = 0; first < rows_; first += group_at(first))
      for (int i = 0; i < group_at(first); i++) {
        T sum = 0;
        for (int lane = i; lane < w; lane += group_at(first)) sum += buffers_.l[first * w + lane];
        buffers_.states.m[first + i] = buffers_.m[first * w + i];
        buffers_.states.l[first + i] = sum;
      }
  }

  int within_block(int64_t key) const { return int(most(0, least(key, block_.count))); }

  const Attention& a_;
  const Task& task_;
  const Sequence& sequence_;
  const int64_t group_;
  const int rows_, head_dim_, v_head_dim_;
  const Buffers& buffers_;
  KeyBlock& block_;
  bool rounded_ = false;  // keys of int8 are multiplied as integers
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
