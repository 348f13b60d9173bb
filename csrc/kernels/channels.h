// channels.h: attention with channels in the lanes, for few rows (decoding, short speculative chunks).
//
// The time goes into reading the cache, so it is read once, in place and in its own type, for all rows; a group of up
// to 4 rows shares each load. A step of such a group: deal the keys to streams, q . k for all of them (scores lie as
// [step][stream][row], one vector a step), softmax lane by lane, then p . v in the same order. Lanes of one row in
// different streams have sums l of their own, added up at the end; they share the maximum m, or their o could not.
#pragma once

#include "products/products.h"
#include "score_block.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Coordinates of a group of R rows: lane l is row first + l % R, and of stream l / R. Phases are halves of streams.
template <class T, int R> struct StreamCoordinates {
  static constexpr int phases = Streams<streams<T, R>>::halves;
  int64_t first, last;
  const Streams<streams<T, R>>& keys;

  int64_t row(int lane) const { return min(first + lane % R, last); }
  int first_key(int phase, int lane) const { return keys.half(lane / R, phase); }
  int end_key(int phase, int lane) const {
    return phase + 1 < phases ? keys.half(lane / R, phase + 1) : keys.first[lane / R + 1];
  }
};

template <class T> class ChannelsInLanes {
 public:
  using States = RowStates<T>;
  static constexpr bool has_quicker_way = false;  // for few keys
  static constexpr int w = width<T>, max_group = max_rows_at_once<T>, block_keys = channels_block_of<T>;

  struct Buffers {
    Buffers(const TaskShape& shape, Scratch& scratch)
        : products(shape, scratch),
          zeros_bytes(8 * max(shape.head_dim, shape.v_head_dim)),
          lane_sums(scratch.take<T>(products.q.rows * w)),
          lane_maxima(scratch.take<T>(products.q.rows * w)),
          s(scratch.take<T>(block_keys * max_group + w)),
          bias(scratch.take<T>(block_keys * max_group + w)),
          zeros(scratch.take<char>(zeros_bytes)),
          block(scratch.take<KeyBlock>(1)),
          program(shape.program, 1, 1, 1, block_keys * max_group / w + 1, scratch) {}

    const typename Products<T>::Buffers products;
    const int64_t zeros_bytes;
    T *const lane_sums, *const lane_maxima;  // [first row of a group][lane]
    T *const s, *const bias;                 // [step][lane]
    char* const zeros;                       // what a stream reads that has ended
    KeyBlock* const block;
    const ProgramMemory<T> program;
  };

  ChannelsInLanes(const Attention& a, const Task& task, const Buffers& buffers)
      : a_(a),
        task_(task),
        sequence_(*task.sequence),
        group_(a.query_heads / a.kv_heads),
        rows_(int(task.row_end - task.row_begin)),
        buffers_(buffers),
        block_(*buffers.block),
        products_(a, task, buffers.products),
        program_(a, *task.sequence, task.kv_head, buffers.program) {}

  void load_queries() {
    memset(buffers_.zeros, 0, size_t(buffers_.zeros_bytes));
    buffers_.products.q.load(a_, task_);
  }

  // Attends `keys`, of one split; `states` are cleared.
  void run(Interval keys, const States& states) {
    const int64_t lanes = buffers_.products.q.rows * w;
    for (int64_t i = 0; i < lanes; i++) buffers_.lane_maxima[i] = -infinity<T>, buffers_.lane_sums[i] = 0;
    const Interval all = attended_anywhere(a_, sequence_, query_of(0), query_of(rows_ - 1));
    KeyWalk walk(a_, sequence_, task_.kv_head);
    while (keys.begin < keys.end) {
      const int64_t end = block_end(sequence_, keys.begin, keys.end, block_keys);
      if (hides(task_.covers, block_number(sequence_, keys.begin, block_keys))) {  // from all rows: not read at all
        keys.begin = end;
        continue;
      }
      const int64_t next = walk.fill(block_, keys.begin, end);
      products_.prepare_block(block_, all);
      for (int r = 0; r < rows_; r += group_at(r)) {
        if (rows_ - r > 2) add<max_group>(keys.begin, r, states);
        else if (rows_ - r == 2) add<2>(keys.begin, r, states);
        else add<1>(keys.begin, r, states);
      }
      keys.begin = next;
    }
    end_rows(states);
  }

  void write(const States& states) const { write_rows(a_, task_, task_.row_begin, rows_, states); }

 private:
  // Rows that share a pass over a block: 1, 2 or 4; the last of 4 may be padding.
  int group_at(int r) const { return rows_ - r > 2 ? max_group : rows_ - r; }

  int64_t query_of(int r) const { return (task_.row_begin + min(r, rows_ - 1)) / group_; }
  int64_t head_of(int r) const { return task_.kv_head * group_ + (task_.row_begin + min(r, rows_ - 1)) % group_; }

  // Adds the block, whose first key is `begin`, to the group of R rows from r on.
  template <int R> void add(int64_t begin, int r, const States& states) const {
    if (!a_.program) return add_keys<R>(begin, r, all_visible, states);
    // Where a program hides keys from the group, what is between them runs by itself: a block is long.
    KeyCover cover = cover_of(task_.covers, r / max_group, block_number(sequence_, begin, block_keys));
    while (cover.visible != 0) {
      const unsigned visible = cover.visible, run = visible & ~(visible + (visible & -visible));
      add_keys<R>(begin, r, {uint16_t(run), uint16_t(cover.partial & run)}, states);
      cover.visible = uint16_t(visible & ~run);
    }
  }

  // The keys of a block that `cover` shows, which lie side by side.
  template <int R> void add_keys(int64_t begin, int r, KeyCover cover_of_program, const States& states) const {
    BlockRange range = block_range(a_, sequence_, query_of(r), query_of(r + R - 1), begin, block_.count);
    CoverRange shown{};
    if (a_.program) {
      shown =
          cover_range(cover_of_program, channels_part_of<T>, within_block(sequence_, begin, block_keys), block_.count);
      range.from = int(max(range.from, shown.from)), range.to = int(min(range.to, shown.to));
    }
    if (range.cover() == Cover::skip) return;
    const int from = range.from, n = range.to - from;
    const Streams<streams<T, R>> keys(n);
    const Cover cover = a_.mask ? load_mask<R>(r, begin + from, keys) : Cover::whole;
    if (cover == Cover::skip) return;

    const bool edges = range.cover() == Cover::partial, masked = cover == Cover::partial;
    ScoreBlock<T, 1, StreamCoordinates<T, R>> scores{buffers_.s,
                                                     keys.steps,
                                                     w,
                                                     {task_.row_begin + r, task_.row_end - 1, keys},
                                                     begin + from,
                                                     masked ? buffers_.bias : nullptr,
                                                     edges || n % streams<T, R> != 0,
                                                     {keys.steps, keys.steps},
                                                     nullptr};
    const bool hides = a_.program && (from < shown.whole_from || range.to > shown.whole_to);
    const BlockProgram<T> program{
        &program_, buffers_.program.rows, buffers_.program.keys, 0, changes_scores(a_.program), hides, {0, 0}};
    if (program.scores || hides) {
      program_.template load_rows<1>(scores.coordinates, buffers_.program.rows);
      program_.load_keys(scores.coordinates, begin + from, keys.steps, buffers_.program.keys);
      scores.program = &program;
    }
    {
      const StreamRows<streams<T, R>> k(keys, block_.k + from, buffers_.zeros);
      products_.template scores<R>(r, block_, from, keys, k, buffers_.s);
    }
    Vec<T> top[1], alpha[1];
    scores.may_stay_natural = true;
    const auto applied = scores.apply(a_, sequence_, group_, top);
    top[0] = fold<T, R>(top[0], [](Vec<T> x, Vec<T> y) { return max(x, y); });
    scores.weights(top, buffers_.lane_maxima + r * w, buffers_.lane_sums + r * w, alpha, applied.natural);

    T* const o = states.o + r * states.stride;
    for (int i = 0; i < R; i++)
      for (T* x = o + i * states.stride; x < o + (i + 1) * states.stride; x += w) store(x, load(x) * alpha[0][i]);
    const bool select = (edges || masked || applied.hidden) &&
                        !values_are_finite<T>(block_.values(), from, range.to, int(a_.v_head_dim));
    const StreamRows<streams<T, R>> v(keys, block_.v + from, buffers_.zeros);
    products_.template accumulate<R>(block_, from, keys, v, select, buffers_.s, o, states.stride);
  }

  // The mask of the group and the streams' keys as a bias that lies as the scores do.
  template <int R> Cover load_mask(int r, int64_t key, const Streams<streams<T, R>>& keys) const {
    MaskCover cover;
    for (int i = 0; i < keys.steps * w; i++) buffers_.bias[i] = -infinity<T>;
    for (int i = 0; i < R; i++) {
      T bias[block_keys];
      cover.add(mask_row(a_, sequence_, head_of(r + i), query_of(r + i), key, keys.total(), bias));
      for (int stream = 0; stream < streams<T, R>; stream++)
        for (int t = 0; t < keys.size(stream); t++) buffers_.bias[t * w + stream * R + i] = bias[keys.key(stream, t)];
    }
    return cover.cover();
  }

  // The rows' m and l; l is summed over the streams.
  void end_rows(const States& states) const {
    for (int first = 0; first < rows_; first += group_at(first))
      for (int i = 0; i < group_at(first); i++) {
        T sum = 0;
        for (int lane = i; lane < w; lane += group_at(first)) sum += buffers_.lane_sums[first * w + lane];
        states.m[first + i] = buffers_.lane_maxima[first * w + i];
        states.l[first + i] = sum;
      }
  }

  const Attention& a_;
  const Task& task_;
  const Sequence& sequence_;
  const int64_t group_;
  const int rows_;
  const Buffers& buffers_;
  KeyBlock& block_;
  Products<T> products_;
  const ProgramRunner<T> program_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
