// rows.h: attention with rows in the lanes, for prompts, chunks and other tasks of many rows: the loops over blocks of
// keys and tiles of rows. Blocks are outermost, so that the tiles share what was fetched and packed once.
#pragma once

#include "row_tile.h"
#include "scratch.h"

namespace gqa {
namespace GQA_ISA {
namespace {

template <class T> class RowsInLanes {
 public:
  RowsInLanes(const TaskShape& shape, Scratch& scratch)
      : max_tiles_((shape.rows + lanes - 1) / lanes),
        tiles_(scratch.take<RowTile<T>>(max_tiles_)),
        q_(scratch.take<T>(max_tiles_ * shape.head_dim * lanes)),
        o_(scratch.take<T>(max_tiles_ * shape.v_head_dim * lanes)),
        m_(scratch.take<T>(max_tiles_ * lanes)),
        l_(scratch.take<T>(max_tiles_ * lanes)),
        s_(scratch.take<T>(Loop::score_rows * lanes)),
        bias_(scratch.take<T>(Loop::score_rows * lanes)),
        states_(States<T>::at(scratch.take<char>(States<T>::bytes(lanes, shape.v_head_dim)), lanes, shape.v_head_dim)),
        blocks_(scratch.take<PanelBlock<T>>(resident_blocks)),
        k_(scratch.take<T>(resident_blocks * key_panels_size<T>(shape.head_dim))),
        v_(scratch.take<T>(resident_blocks * value_panels_size<T>(shape.v_head_dim))) {}

  // Attends keys [begin, end) and calls done(first row, rows, states) for each tile.
  template <class Done> void run(const Attention& a, const Task& task, int64_t begin, int64_t end, Done done) {
    const Loop loop(a, task, s_, bias_);
    KeyWalk walk(a, *task.sequence, task.kv_head);
    const int64_t tiles = (task.row_end - task.row_begin + lanes - 1) / lanes;
    int64_t next = begin;
    int opened = 0;
    if ((end + rows_block - 1) / rows_block - begin / rows_block <= resident_blocks)
      while (next < end && opened < resident_blocks) next = open(walk, a, blocks_[opened++], next, end, tiles);
    if (next >= end) {
      for (int64_t t = 0; t < tiles; t++) {
        RowTile<T>& tile = start(loop, a, task, t, 0);
        for (int b = 0; b < opened; b++) loop.add(tile, blocks_[b]);
        finish(loop, tile, done);
      }
      return;
    }
    for (int64_t t = 0; t < tiles; t++) start(loop, a, task, t, t);
    while (begin < end) {
      begin = open(walk, a, blocks_[0], begin, end, tiles);
      for (int64_t t = 0; t < tiles; t++) loop.add(tiles_[t], blocks_[0]);
    }
    for (int64_t t = 0; t < tiles; t++) finish(loop, tiles_[t], done);
  }

 private:
  static constexpr int lanes = tile_lanes<T>;
  static constexpr int resident_blocks = 2;  // all keys in so few blocks: each is packed once, and tiles are outermost
  static constexpr int tiles_worth_packing = 4;
  using Loop = RowTileLoop<T>;

  RowTile<T>& start(const Loop& loop, const Attention& a, const Task& task, int64_t t, int64_t slot) {
    RowTile<T>& tile = tiles_[slot];
    tile.q = q_ + slot * a.head_dim * lanes;
    tile.o = o_ + slot * a.v_head_dim * lanes;
    tile.m = m_ + slot * lanes;
    tile.l = l_ + slot * lanes;
    tile.first = task.row_begin + t * lanes;
    tile.rows = int(least(lanes, task.row_end - tile.first));
    loop.begin(tile);
    return tile;
  }

  template <class Done> void finish(const Loop& loop, const RowTile<T>& tile, Done done) {
    loop.end(tile, states_);
    done(tile.first, tile.rows, states_);
  }

  // The block of keys from `begin` on; returns where it ends.
  int64_t open(KeyWalk& walk, const Attention& a, PanelBlock<T>& block, int64_t begin, int64_t end, int64_t tiles) {
    const int64_t index = &block - blocks_;
    const int64_t stop = walk.fill(block.keys, begin, least(end, (begin / rows_block + 1) * rows_block));
    block.begin = begin;
    block.k = k_ + index * key_panels_size<T>(a.head_dim);
    block.v = v_ + index * value_panels_size<T>(a.v_head_dim);
    block.k_packed = tiles >= tiles_worth_packing || block.keys.k_type != type_of<T>;
    block.v_packed = tiles >= tiles_worth_packing || block.keys.v_type != type_of<T>;
    if (block.k_packed) pack_keys(block.keys, int(a.head_dim), block.k);
    if (block.v_packed) block.finite = pack_values(block.keys, int(a.v_head_dim), block.v);
    block.finite_known = block.v_packed;
    return stop;
  }

  int64_t max_tiles_;
  RowTile<T>* tiles_;
  T *q_, *o_, *m_, *l_, *s_, *bias_;
  States<T> states_;
  PanelBlock<T>* blocks_;
  T *k_, *v_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
