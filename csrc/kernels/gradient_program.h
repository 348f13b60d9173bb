// gradient_program.h: a score program in the backward pass: what it has of rows and keys, and of a tile and a block.
//
// Scores are computed anew as the forward pass has them, and beside them the program's slope, the derivative of what it
// gives by the score that it takes.
#pragma once

#include "tile_scores.h"

namespace gqa {
namespace GQA_ISA {
namespace {

template <class T> class GradientProgram {
 public:
  static constexpr int lanes = tile_lanes<T>, w = width<T>;
  // Which block's keys: that which tiles take, or one that a denominator is computed from meanwhile.
  enum Keys { taken, counted, blocks };

  static ProgramMemory<T> memory(const TaskShape& shape, Scratch& scratch) {
    return {shape.program, (shape.rows + lanes - 1) / lanes, tile_vectors, blocks, rows_block, scratch};
  }

  GradientProgram(const Attention& a, const GradientTask& task, const ProgramMemory<T>& memory)
      : a_(a), task_(task), memory_(memory), runner_(a, *task.sequence, task.kv_head, memory) {}

  void load_rows(const LaneRows& rows) const {
    if (!a_.program) return;
    const TileCoordinates coordinates{rows.first, rows.last(), 0};
    if (rows.count > w) runner_.template load_rows<2>(coordinates, rows_of(rows));
    else runner_.template load_rows<1>(coordinates, rows_of(rows));
  }
  void load_keys(Keys keys, int64_t begin, int count) const {
    if (!a_.program) return;
    const TileCoordinates coordinates{0, 0, count};
    runner_.load_keys(coordinates, begin, count, memory_.keys_of(keys));
  }

  // Whether the derivative of what it gives by the score that it takes is other than 1.
  bool has_slopes() const { return a_.program && a_.program->plan->has[output_slope]; }

  // What its mask leaves to a tile of the block that begins with key `begin`.
  KeyCover cover(const LaneRows& rows, int64_t begin) const {
    if (!a_.program) return all_visible;
    return cover_of(task_.covers, tile(rows), block_number(*task_.sequence, begin, rows_block));
  }
  bool hides_from_all(int64_t begin) const {
    return a_.program && hides(task_.covers, block_number(*task_.sequence, begin, rows_block));
  }

  // What it does to the scores of rows with the range of a block.
  BlockProgram<T> of(const LaneRows& rows, Keys keys, const TileRange& range) const {
    return {&runner_,
            rows_of(rows),
            memory_.keys_of(keys),
            range.from,
            changes_scores(a_.program),
            range.hides(),
            {range.shown_from - range.from, range.shown_to - range.from},
            has_slopes()};
  }

 private:
  int64_t tile(const LaneRows& rows) const { return (rows.first - task_.row_begin) / lanes; }
  T* rows_of(const LaneRows& rows) const { return memory_.rows_of(tile(rows)); }

  const Attention& a_;
  const GradientTask& task_;
  const ProgramMemory<T>& memory_;
  const ProgramRunner<T> runner_;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
