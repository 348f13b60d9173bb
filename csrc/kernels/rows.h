// rows.h: attention with rows in the lanes, for prompts, chunks and other tasks of many rows: the loops over blocks of
// keys and tiles of rows.
#pragma once

#include "row_tile.h"
#include "scratch.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// The two orders. Ordinarily blocks are outermost: a block of keys is fetched, and packed, once and stays in L1 or L2
// while all tiles take it; tiles keep their states in memory between blocks (a task's Q^T and O^T fit into L2). Where
// the keys are so few that all their blocks fit beside one tile, tiles are outermost: each block is still packed once,
// and one tile's Q^T and O^T serve for all of them, so that short prompts stay in L1.
template <class T> class RowsInLanes {
 public:
  using States = LaneStates<T>;
  static constexpr bool has_quicker_way = true;  // for few keys: attend_at_once
  static constexpr int lanes = tile_lanes<T>;
  static constexpr int resident_blocks = 2;
  static constexpr int tiles_worth_packing = 4, readable_bytes = 40 << 10;
  using Loop = RowTileLoop<T>;

  struct Buffers {
    Buffers(const TaskShape& shape, Scratch& scratch)
        : q(scratch.take<T>(LaneStates<T>::tiles_of(shape) * shape.head_dim * lanes)),
          started(scratch.take<bool>(LaneStates<T>::tiles_of(shape))),
          s(scratch.take<T>(score_rows * lanes)),
          bias(scratch.take<T>(score_rows * lanes)),
          blocks(scratch.take<PanelBlock<T>>(resident_blocks)),
          k(scratch.take<T>(resident_blocks * key_panels_size<T>(shape.head_dim))),
          v(scratch.take<T>(resident_blocks * value_panels_size<T>(shape.v_head_dim))),
          program(shape.program, LaneStates<T>::tiles_of(shape), tile_vectors, resident_blocks, rows_block, scratch) {
      const TaskShape tile{lanes, shape.head_dim, shape.v_head_dim, 1, true, nullptr, nullptr};
      one_tile = LaneStates<T>::at(scratch.take<char>(int64_t(LaneStates<T>::bytes(tile))), tile);
      rows = RowStates<T>::at(scratch.take<char>(int64_t(RowStates<T>::bytes(tile))), tile);
    }

    T* const q;           // [tile][head_dim][lanes]
    bool* const started;  // [tile]
    T *const s, *const bias;
    PanelBlock<T>* const blocks;
    T *const k, *const v;  // the panels of the blocks
    const ProgramMemory<T> program;
    LaneStates<T> one_tile;  // where tiles are outermost
    RowStates<T> rows;       // a tile on its way to the output
  };

  RowsInLanes(const Attention& a, const Task& task, const Buffers& buffers)
      : a_(a),
        task_(task),
        tiles_(ceil_div(task.row_end - task.row_begin, lanes)),
        buffers_(buffers),
        loop_(a, task, buffers.s, buffers.bias, buffers.program) {}

  // Tiles outermost, if that suits so few keys, of one split: attends them, ends all rows and returns true.
  bool attend_at_once(Interval keys) const {
    const int64_t origin = task_.sequence->origin;
    if (keys.begin < keys.end &&
        (origin + keys.end - 1) / rows_block - (origin + keys.begin) / rows_block >= resident_blocks)
      return false;
    KeyWalk walk(a_, *task_.sequence, task_.kv_head);
    int opened = 0;
    for (keys = visible(keys); keys.begin < keys.end && opened < resident_blocks; keys = visible(keys))
      keys.begin = open(walk, opened++, keys);
    if (keys.begin < keys.end) return false;  // types change within a block
    for (int64_t t = 0; t < tiles_; t++) {
      RowTile<T> tile = tile_at(t, buffers_.q, buffers_.one_tile);
      buffers_.one_tile.clear();
      loop_.load_queries(tile);
      for (int b = 0; b < opened; b++) loop_.add(tile, buffers_.blocks[b]);
      write_tile(tile);
    }
    return true;
  }

  void load_queries() const {
    for (int64_t t = 0; t < tiles_; t++) loop_.load_queries(tile_at(t, queries_of(t), {}));
  }

  // Attends `keys`, of one split; `states` are cleared. Blocks outermost.
  void run(Interval keys, const States& states) const {
    for (int64_t t = 0; t < tiles_; t++) buffers_.started[t] = false;
    KeyWalk walk(a_, *task_.sequence, task_.kv_head);
    for (keys = visible(keys); keys.begin < keys.end; keys = visible(keys)) {
      keys.begin = open(walk, 0, keys);
      for (int64_t t = 0; t < tiles_; t++) {
        RowTile<T> tile = tile_at(t, queries_of(t), states.tile(t));
        tile.started = buffers_.started[t];
        loop_.add(tile, buffers_.blocks[0]);
        buffers_.started[t] = tile.started;
      }
    }
  }

  void write(const States& states) const {
    for (int64_t t = 0; t < tiles_; t++) write_tile(tile_at(t, nullptr, states.tile(t)));
  }

 private:
  // Without the blocks at their beginning that a program hides from all tiles, which are not read at all.
  Interval visible(Interval keys) const {
    const Sequence& sequence = *task_.sequence;
    while (keys.begin < keys.end && hides(task_.covers, block_number(sequence, keys.begin, rows_block)))
      keys.begin = block_end(sequence, keys.begin, keys.end, rows_block);
    return keys;
  }

  T* queries_of(int64_t t) const { return buffers_.q + t * a_.head_dim * lanes; }

  RowTile<T> tile_at(int64_t t, T* q, const LaneStates<T>& states) const {
    const int64_t first = task_.row_begin + t * lanes;
    return {q, states, {first, int(min(lanes, task_.row_end - first))}, false, t, buffers_.program.rows_of(t)};
  }

  void write_tile(const RowTile<T>& tile) const {
    loop_.to_rows(tile, buffers_.rows);
    write_rows(a_, task_, tile.rows.first, tile.rows.count, buffers_.rows);
  }

  // The block that begins with the first of `keys`, packed where that pays; returns where it ends.
  int64_t open(KeyWalk& walk, int index, Interval keys) const {
    PanelBlock<T>& block = buffers_.blocks[index];
    const int64_t stop =
        walk.fill(block.keys, keys.begin, block_end(*task_.sequence, keys.begin, keys.end, rows_block));
    block.begin = keys.begin;
    block.number = block_number(*task_.sequence, keys.begin, rows_block);
    block.program_keys = buffers_.program.keys_of(index);
    block.k = buffers_.k + index * key_panels_size<T>(a_.head_dim);
    block.v = buffers_.v + index * value_panels_size<T>(a_.v_head_dim);
    block.k_packed = block.keys.k_type != type_of<T> || worth_packing(block.keys.k, block.keys.count);
    block.v_packed = block.keys.v_type != type_of<T> || worth_packing(block.keys.v, block.keys.count);
    if (block.k_packed) pack_keys(block.keys.keys(), int(a_.head_dim), block.k);
    if (block.v_packed) block.finite = pack_values(block.keys.values(), int(a_.v_head_dim), block.v);
    block.finite_known = block.v_packed;
    loop_.load_program_keys(block);
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
