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
  static constexpr int lanes = tile_lanes<T>;
  static constexpr int resident_blocks = 2;  // all keys in so few blocks: each is packed once, and tiles are outermost
  static constexpr int tiles_worth_packing = 4, readable_bytes = 40 << 10;
  using Loop = RowTileLoop<T>;

  struct Buffers {
    Buffers(const TaskShape& shape, Scratch& scratch)
        : tiles(scratch.take<RowTile<T>>(ceil_div(shape.rows, lanes))),
          q(scratch.take<T>(ceil_div(shape.rows, lanes) * shape.head_dim * lanes)),
          o(scratch.take<T>(ceil_div(shape.rows, lanes) * shape.v_head_dim * lanes)),
          m(scratch.take<T>(ceil_div(shape.rows, lanes) * lanes)),
          l(scratch.take<T>(ceil_div(shape.rows, lanes) * lanes)),
          s(scratch.take<T>(Loop::score_rows * lanes)),
          bias(scratch.take<T>(Loop::score_rows * lanes)),
          blocks(scratch.take<PanelBlock<T>>(resident_blocks)),
          k(scratch.take<T>(resident_blocks * key_panels_size<T>(shape.head_dim))),
          v(scratch.take<T>(resident_blocks * value_panels_size<T>(shape.v_head_dim))),
          states(
              States<T>::at(scratch.take<char>(States<T>::bytes(lanes, shape.v_head_dim)), lanes, shape.v_head_dim)) {}

    RowTile<T>* const tiles;
    T *const q, *const o, *const m, *const l;  // of all tiles
    T *const s, *const bias;
    PanelBlock<T>* const blocks;
    T *const k, *const v;    // the panels of the blocks
    const States<T> states;  // of one tile
  };

  RowsInLanes(const Attention& a, const Task& task, const Buffers& buffers)
      : a_(a),
        task_(task),
        tiles_(ceil_div(task.row_end - task.row_begin, lanes)),
        buffers_(buffers),
        loop_(a, task, buffers.s, buffers.bias) {}

  // Attends keys [begin, end) and calls done(first row, rows, states) for each tile.
  template <class Done> void run(int64_t begin, int64_t end, Done done) const {
    KeyWalk walk(a_, *task_.sequence, task_.kv_head);
    int64_t next = begin;
    int opened = 0;
    if (ceil_div(end, rows_block) - begin / rows_block <= resident_blocks)
      while (next < end && opened < resident_blocks) next = open(walk, opened++, next, end);
    if (next >= end) {
      for (int64_t t = 0; t < tiles_; t++) {
        RowTile<T>& tile = start(t, 0);
        for (int b = 0; b < opened; b++) loop_.add(tile, buffers_.blocks[b]);
        finish(tile, done);
      }
      return;
    }
    for (int64_t t = 0; t < tiles_; t++) start(t, t);
    while (begin < end) {
      begin = open(walk, 0, begin, end);
      for (int64_t t = 0; t < tiles_; t++) loop_.add(buffers_.tiles[t], buffers_.blocks[0]);
    }
    for (int64_t t = 0; t < tiles_; t++) finish(buffers_.tiles[t], done);
  }

 private:
  // Tile t of the task, in the memory of tile `slot`.
  RowTile<T>& start(int64_t t, int64_t slot) const {
    RowTile<T>& tile = buffers_.tiles[slot];
    tile.q = buffers_.q + slot * a_.head_dim * lanes;
    tile.o = buffers_.o + slot * a_.v_head_dim * lanes;
    tile.m = buffers_.m + slot * lanes;
    tile.l = buffers_.l + slot * lanes;
    tile.first = task_.row_begin + t * lanes;
    tile.rows = int(least(lanes, task_.row_end - tile.first));
    loop_.begin(tile);
    return tile;
  }

  template <class Done> void finish(const RowTile<T>& tile, Done done) const {
    loop_.end(tile, buffers_.states);
    done(tile.first, int64_t(tile.rows), buffers_.states);
  }

  // The block of keys from `begin` on, packed where that pays; returns where it ends.
  int64_t open(KeyWalk& walk, int index, int64_t begin, int64_t end) const {
    PanelBlock<T>& block = buffers_.blocks[index];
    const int64_t stop = walk.fill(block.keys, begin, least(end, (begin / rows_block + 1) * rows_block));
    block.begin = begin;
    block.k = buffers_.k + index * key_panels_size<T>(a_.head_dim);
    block.v = buffers_.v + index * value_panels_size<T>(a_.v_head_dim);
    block.k_packed = block.keys.k_type != type_of<T> || worth_packing(block.keys.k, block.keys.count);
    block.v_packed = block.keys.v_type != type_of<T> || worth_packing(block.keys.v, block.keys.count);
    if (block.k_packed) pack_keys(block.keys, int(a_.head_dim), block.k);
    if (block.v_packed) block.finite = pack_values(block.keys, int(a_.v_head_dim), block.v);
    block.finite_known = block.v_packed;
    return stop;
  }

  // Tiles that are as high in place as in panels are as fast there where the rows of a block lie close together, so
  // that they stay in L1.
  bool worth_packing(const char* const* rows, int count) const {
    if (tiles_ < tiles_worth_packing) return false;
    const int64_t bytes = rows[count - 1] - rows[0];
    return tile_height > rows_in_place || bytes < 0 || bytes > readable_bytes;
  }

  const Attention& a_;
  const Task& task_;
  const int64_t tiles_;
  const Buffers& buffers_;
  const Loop loop_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
