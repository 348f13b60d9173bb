// channels.h: attention with channels in the lanes, for few rows (decoding, short speculative chunks).
//
// The time goes into reading the cache, so it is read once, in place and in its own type, for all rows; a group of up
// to 4 rows shares each load.
#pragma once

#include "products.h"
#include "scratch.h"
#include "state.h"

namespace gqa {
namespace GQA_ISA {
namespace {

template <class T> class ChannelsInLanes {
 public:
  ChannelsInLanes(const TaskShape& shape, Scratch& scratch)
      : room_(shape.rows + max_group),
        q_stride_((shape.head_dim + w - 1) / w * w),
        q_(scratch.take<T>(room_ * q_stride_)),
        m_(scratch.take<T>(room_ * w)),
        l_(scratch.take<T>(room_ * w)),
        s_(scratch.take<T>(channels_block * max_group + w)),
        bias_(scratch.take<T>(channels_block * max_group + w)),
        zeros_bytes_(8 * most(shape.head_dim, shape.v_head_dim)),
        zeros_(scratch.take<char>(zeros_bytes_)),
        wide_k_(scratch.take<double>(sizeof(T) == 8 ? channels_block * shape.head_dim : 0)),
        wide_v_(scratch.take<double>(sizeof(T) == 8 ? channels_block * shape.v_head_dim : 0)),
        block_(scratch.take<KeyBlock>(1)),
        states_(States<T>::at(scratch.take<char>(States<T>::bytes(room_, shape.v_head_dim)), room_, shape.v_head_dim)) {
  }

  // Attends keys [begin, end) and calls done(first row, rows, states).
  template <class Done> void run(const Attention& a, const Task& task, int64_t begin, int64_t end, Done done) {
    const int rows = int(task.row_end - task.row_begin);
    load_queries(a, task, rows);
    states_.clear(room_);
    for (int64_t i = 0; i < room_ * w; i++) m_[i] = -infinity<T>, l_[i] = 0;
    memset(zeros_, 0, size_t(zeros_bytes_));

    KeyWalk walk(a, *task.sequence, task.kv_head);
    while (begin < end) {
      const int64_t next = walk.fill(*block_, begin, least(end, (begin / channels_block + 1) * channels_block));
      widen(a);
      for (int r = 0; r < rows; r += group_of(rows - r)) add_group(a, task, begin, r, rows - r);
      begin = next;
    }
    end_rows(rows);
    done(task.row_begin, int64_t(rows), states_);
  }

 private:
  static constexpr int w = width<T>, max_group = w < 4 ? w : 4;

  void load_queries(const Attention& a, const Task& task, int rows) {
    const int64_t group = a.query_heads / a.kv_heads;
    const T scale = T(a.scale * (a.softcap > 0 ? 1.0 : 1.4426950408889634));
    for (int64_t i = 0; i < room_ * q_stride_; i++) q_[i] = 0;
    with_float_type(a.q_type, [&](auto s) {
      using S = decltype(s);
      for (int r = 0; r < rows; r++) {
        const int64_t row = task.row_begin + r;
        const S* q = reinterpret_cast<const S*>(
            at_row(a.q, a.q_strides, *task.sequence, task.kv_head * group + row % group, row / group));
        for (int d = 0; d < a.head_dim; d++) q_[r * q_stride_ + d] = convert<T>(read<S>(q + d)) * scale;
      }
    });
  }

  // For double, other types are widened into scratch; for float, the products widen in registers.
  void widen(const Attention& a) {
    if (sizeof(T) == 4) return;
    widen_rows(block_->k, block_->k_scale, block_->k_type, block_->count, int(a.head_dim), wide_k_);
    widen_rows(block_->v, block_->v_scale, block_->v_type, block_->count, int(a.v_head_dim), wide_v_);
    block_->k_type = block_->v_type = DType::f64;
  }
  static void widen_rows(const char** rows, const float* scales, DType type, int count, int channels, double* to) {
    if (type == DType::f64) return;
    with_cache_type(type, [&](auto s) {
      using S = decltype(s);
      for (int j = 0; j < count; j++, to += channels) {
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

  // Rows that share a pass over a block: 1, 2 or 4; the last of 4 may be padding.
  static int group_of(int left) { return left > 2 ? max_group : left; }

  void add_group(const Attention& a, const Task& task, int64_t begin, int r, int left) {
    if (left > 2) add<max_group>(a, task, begin, r, int(least(left, max_group)));
    else if (left == 2) add<2>(a, task, begin, r, 2);
    else add<1>(a, task, begin, r, 1);
  }

  // Adds the block, whose first key is `begin`, to R rows from r on, of which `rows` are real.
  template <int R> void add(const Attention& a, const Task& task, int64_t begin, int r, int rows) {
    const KeyBlock& block = *block_;
    const Sequence& sequence = *task.sequence;
    const int64_t group = a.query_heads / a.kv_heads, row = task.row_begin + r;
    const Interval first = attended(a, sequence, row / group), last = attended(a, sequence, (row + rows - 1) / group);
    const int from = within(block, first.begin - begin), to = within(block, last.end - begin), n = to - from;
    if (n <= 0) return;
    const Streams<streams<T, R>> keys(n);
    if (a.mask && !load_mask<R>(a, task, row, rows, begin + from, keys)) return;

    const Scores<T, 1> scores{s_, keys.steps, w};
    with_direct_type(block.k_type, [&](auto s) {
      multiply_keys<T, decltype(s), R>(q_ + r * q_stride_, q_stride_, int(a.head_dim), keys, block.k + from, zeros_,
                                       s_);
    });
    if (block.k_type == DType::i8) multiply_scales<R>(block.k_scale + from, keys);
    if (a.softcap > 0) scores.soft_cap(T(a.softcap));
    if (a.mask) scores.add(bias_);
    const bool edges = first.begin < last.begin || first.end < last.end;
    if (edges || n % streams<T, R> != 0) {
      T low[w], high[w], key[w];
      for (int i = 0; i < w; i++) {
        const Interval interval = attended(a, sequence, (row + least(i % R, rows - 1)) / group);
        key[i] = T(keys.first[i / R]);
        low[i] = T(most(interval.begin - begin - from, 0));
        high[i] = T(least(interval.end - begin - from, keys.first[i / R + 1]));
      }
      scores.mask(key, low, high, 0, keys.steps);
    }
    Vec<T> top[1], alpha[1];
    scores.maximum(top);
    top[0] = fold<T, R>(top[0], [](Vec<T> x, Vec<T> y) { return max(x, y); });
    scores.weights(top, m_ + r * w, l_ + r * w, alpha);
    if (block.v_type == DType::i8) multiply_scales<R>(block.v_scale + from, keys);

    T* o = states_.o + r * states_.stride;
    for (int i = 0; i < R; i++)
      for (int64_t c = 0; c < states_.stride; c += w) {
        T* x = o + i * states_.stride + c;
        store(x, load(x) * alpha[0][i]);
      }
    const bool select = (edges || a.mask) && !values_are_finite<T>(block, int(a.v_head_dim));
    with_direct_type(block.v_type, [&](auto s) {
      if (select)
        add_values_selecting<T, decltype(s), R>(o, states_.stride, int(a.v_head_dim), keys, block.v + from, zeros_, s_);
      else add_values<T, decltype(s), R>(o, states_.stride, int(a.v_head_dim), keys, block.v + from, zeros_, s_);
    });
  }

  template <int R> void multiply_scales(const float* scales, const Streams<streams<T, R>>& keys) {
    for (int t = 0; t < keys.steps; t++)
      for (int i = 0; i < w; i++)
        if (keys.first[i / R] + t < keys.first[i / R + 1]) s_[t * w + i] *= T(scales[keys.first[i / R] + t]);
  }

  // The mask of R rows and the streams' keys as a bias that lies as the scores do; false if it hides all of them.
  template <int R>
  bool load_mask(const Attention& a, const Task& task, int64_t row, int rows, int64_t key,
                 const Streams<streams<T, R>>& keys) {
    const int64_t group = a.query_heads / a.kv_heads;
    const int n = keys.first[streams<T, R>];
    bool any = false;
    for (int i = 0; i < keys.steps * w; i++) bias_[i] = -infinity<T>;
    for (int i = 0; i < R; i++) {
      T bias[channels_block];
      const int64_t r = row + least(i, rows - 1);
      any |= mask_row(a, *task.sequence, task.kv_head * group + r % group, r / group, key, n, bias);
      for (int stream = 0; stream < streams<T, R>; stream++)
        for (int j = keys.first[stream], t = 0; j < keys.first[stream + 1]; j++, t++)
          bias_[t * w + stream * R + i] = bias[j];
    }
    return any;
  }

  // The rows' m and l; l is summed over the streams.
  void end_rows(int rows) {
    for (int first = 0, group; first < rows; first += group) {
      group = group_of(rows - first);
      for (int r = first; r < first + group; r++) {
        states_.m[r] = m_[first * w + r - first];
        states_.l[r] = 0;
        for (int i = r - first; i < w; i += group) states_.l[r] += l_[first * w + i];
      }
    }
  }

  static int within(const KeyBlock& block, int64_t key) { return int(most(0, least(key, block.count))); }

  const int64_t room_, q_stride_;
  T *q_, *m_, *l_, *s_, *bias_;
  int64_t zeros_bytes_;
  char* zeros_;
  double *wide_k_, *wide_v_;
  KeyBlock* block_;
  States<T> states_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
