// gradient_loop.h: a task of the backward pass: the loops over blocks of keys and tiles of rows.
#pragma once

#include "gradient_totals.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Blocks are outermost: a block is packed once, and its dk and dv stay in L1 or L2 while all tiles of the task take it,
// a few at once. The tiles keep q, dout and dq in L2 meanwhile.
template <class T> class GradientLoop {
 public:
  static constexpr int lanes = tile_lanes<T>, w = width<T>;
  static_assert(gradient_block == rows_block, "panels have room for so many keys");
  using Rows = GradientRows<T>;
  using TileLoop = GradientTileLoop<T>;

  struct Buffers {
    Buffers(const TaskShape& shape, Scratch& scratch)
        : rows(shape, scratch),
          tiles(scratch),
          keys(scratch.take<KeyBlock>(1)),
          k(scratch.take<T>(key_panels_size<T>(shape.head_dim))),
          v(scratch.take<T>(key_panels_size<T>(shape.v_head_dim))),
          k_values(scratch.take<T>(value_panels_size<T>(shape.head_dim))),
          dk(scratch.take<T>(TileLoop::sums_size(shape.head_dim))),
          dv(scratch.take<T>(TileLoop::sums_size(shape.v_head_dim))),
          row_sums(scratch.take<T>((rows.count + tiles_at_once) * lanes)),
          program(GradientProgram<T>::memory(shape, scratch)) {}

    const typename Rows::Buffers rows;
    const typename TileLoop::Buffers tiles;
    KeyBlock* const keys;
    T *const k, *const v, *const k_values, *const dk, *const dv;
    T* const row_sums;  // of dS, where the mask has one element for all keys: [tile][lane]
    const ProgramMemory<T> program;
  };

  GradientLoop(const Gradients& g, const GradientTask& task, const Buffers& buffers)
      : g_(g),
        a_(*g.attention),
        task_(task),
        head_(a_, *task.sequence, task.kv_head),
        buffers_(buffers),
        program_(a_, task, buffers.program),
        rows_(g, task, buffers.rows, program_),
        tiles_(g, task, buffers.tiles, program_) {}

  void run() const {
    const int64_t count = rows_.count();
    const Interval keys{attended(a_, head_.sequence, head_.query(task_.row_begin)).begin,
                        attended(a_, head_.sequence, head_.query(task_.row_end - 1)).end};
    Interval blocks{0, 0};
    if (keys.begin < keys.end) blocks = {keys.begin / gradient_block, ceil_div(keys.end, gradient_block)};
    if (g_.dmask) clear(buffers_.row_sums, count * lanes);
    pass_mask(0, blocks.begin);
    KeyWalk walk(a_, head_.sequence, task_.kv_head);
    GradientAhead ahead(g_, task_);
    for (int64_t block = blocks.begin; block < blocks.end; block++) {
      if (task_.await_mask) task_.await_mask(task_.turns, block);
      run_block(walk, block, blocks, ahead);
      if (task_.pass_mask) task_.pass_mask(task_.turns, block);
    }
    if (blocks.begin == blocks.end)
      for (int64_t t = 0; t < count; t++) rows_.end_unstarted(t);
    pass_mask(blocks.end, task_.blocks);
    if (g_.dmask && g_.dmask_key_stride == 0) add_row_sums(count);
    else pass_mask(task_.blocks, task_.blocks + 1);
  }

 private:
  static void clear(T* p, int64_t n) { memset(p, 0, size_t(n) * sizeof(T)); }

  void run_block(KeyWalk& walk, int64_t block, Interval blocks, GradientAhead& ahead) const {
    const int64_t count = rows_.count();
    const bool hidden = program_.hides_from_all(block * gradient_block);
    const GradientBlock<T> keys = open(walk, block, !hidden);
    for (int64_t t = 0; t < count; t += tiles_at_once) {
      const int n = int(min(tiles_at_once, count - t));
      if (block == blocks.begin)
        for (int g = 0; g < n; g++) rows_.start(t + g);
      look_ahead(ahead, block, blocks, t, n);
      if (!hidden) tiles_.add(&rows_.tile(t), n, keys, buffers_.row_sums + t * lanes, ahead);
      for (int g = 0; g < n; g++)
        if (block == last_block(t + g, blocks.begin)) rows_.end(t + g);
    }
    const Turn turn = task_.await_keys(task_.turns, block);
    add_to_totals(task_, task_.dk_sums, g_.dk, keys.begin, keys.keys->count, keys.dk, int(a_.head_dim), T(a_.scale),
                  turn);
    add_to_totals(task_, task_.dv_sums, g_.dv, keys.begin, keys.keys->count, keys.dv, int(a_.v_head_dim), T(1), turn);
    task_.pass_keys(task_.turns, block);
  }

  // A whole block, whatever part of it the rows attend: what is computed depends on the sequence alone.
  // read: false: none of its keys is looked at.
  GradientBlock<T> open(KeyWalk& walk, int64_t block, bool read) const {
    const int head_dim = int(a_.head_dim), v_head_dim = int(a_.v_head_dim);
    const Buffers& b = buffers_;
    GradientBlock<T> opened{b.keys, block * gradient_block, b.k, b.v, b.k_values, b.dk, b.dv, false};
    walk.fill(*b.keys, opened.begin, end_of(block));
    if (read) {
      pack_keys(b.keys->keys(), head_dim, b.k);
      pack_keys(b.keys->values(), v_head_dim, b.v);
      opened.k_finite = pack_values(b.keys->keys(), head_dim, b.k_values);
      program_.load_keys(GradientProgram<T>::taken, opened.begin, b.keys->count);
    }
    clear(b.dk, TileLoop::sums_size(head_dim));
    clear(b.dv, TileLoop::sums_size(v_head_dim));
    return opened;
  }

  // Announces what comes after tiles [t, t + n) of a block: the next tiles' rows; dq, if the tiles end here; and, while
  // the last tiles take the block, so that it does not leave L2 again, the next block and where the sums go.
  void look_ahead(GradientAhead& ahead, int64_t block, Interval blocks, int64_t t, int64_t n) const {
    const int64_t row = rows_.tile(t).rows.first, end = min(task_.row_end, row + n * lanes);
    if (block == blocks.begin) ahead.announce_rows(end, min(task_.row_end, end + tiles_at_once * lanes));
    if (block == last_block(t, blocks.begin)) ahead.announce_dq(row, end);
    const int64_t left = rows_.count() - (t + n), next = block + 1;
    if (next < blocks.end && left <= tiles_at_once && (left > 0 || t == 0))
      ahead.announce_keys(next * gradient_block, end_of(next));
    if (left == 0) ahead.announce_sums(block * gradient_block, end_of(block));
  }
  int64_t end_of(int64_t block) const { return min(head_.sequence.keys, (block + 1) * gradient_block); }

  // The block after which a tile can end: that of the last key that its rows attend.
  int64_t last_block(int64_t t, int64_t first_block) const {
    const int64_t end = attended(a_, head_.sequence, head_.query(rows_.tile(t).rows.last())).end;
    return max(first_block, (end - 1) / gradient_block);
  }

  // Takes no part in the blocks [from, to).
  void pass_mask(int64_t from, int64_t to) const {
    if (!task_.await_mask) return;
    for (int64_t block = from; block < to; block++) {
      task_.await_mask(task_.turns, block);
      task_.pass_mask(task_.turns, block);
    }
  }

  void add_row_sums(int64_t count) const {
    if (task_.await_mask) task_.await_mask(task_.turns, task_.blocks);
    for (int64_t t = 0; t < count; t++)
      add_mask_gradient_of_rows(g_, head_, rows_.tile(t).rows, buffers_.row_sums + t * lanes);
    if (task_.pass_mask) task_.pass_mask(task_.turns, task_.blocks);
  }

  const Gradients& g_;
  const Attention& a_;
  const GradientTask& task_;
  const HeadRows head_;
  const Buffers& buffers_;
  const GradientProgram<T> program_;
  const Rows rows_;
  const TileLoop tiles_;
};

template <class T> size_t gradient_bytes(const TaskShape& shape) {
  Scratch scratch(nullptr);
  typename GradientLoop<T>::Buffers(shape, scratch);
  return scratch.used();
}

template <class T> void differentiate(const Gradients& g, const GradientTask& task, void* workspace) {
  const Attention& a = *g.attention;
  Scratch scratch(workspace);
  const typename GradientLoop<T>::Buffers buffers(
      {task.row_end - task.row_begin, a.head_dim, a.v_head_dim, 1, true, a.program ? a.program->plan : nullptr},
      scratch);
  GradientLoop<T>(g, task, buffers).run();
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
