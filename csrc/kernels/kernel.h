// kernel.h: the watershed. What the driver hands to a kernel, and what one instruction set offers to the driver.
//
// Above it: plans, threads, allocation, exceptions. Below it: vectors, and nothing else.
#pragma once

#include "../attention.h"
#include "../gradients.h"
#include "../program_plan.h"
#include "../quantization.h"
#include "../rotary.h"
#include "../states.h"
#include "products/integer_products.h"

namespace gqa {

// Which keys a program's mask leaves to a tile of rows, or to a group of few, in a block of keys at a multiple of the
// grid's: a bit for each `part_keys` of them. visible: some row may attend one of these; partial: some row may not.
struct KeyCover {
  uint16_t visible, partial;
};
constexpr KeyCover all_visible{0xffff, 0}, all_partial{0xffff, 0xffff};

struct CoverGrid {
  int64_t rows, block_keys, part_keys;
};

// Of the tiles of a task, at[tile][block]; any[block] has what is visible to some tile. Blocks are counted from
// first_block, by absolute key numbers.
struct Covers {
  const KeyCover *any, *at;  // null: `otherwise` everywhere
  int64_t first_block, blocks;
  KeyCover otherwise;
};

// Row r of a KV head is query r / group of query head kv_head * group + r % group: the rows that share its keys.
// A task is rows [row_begin, row_end) of one sequence and KV head, over the keys of splits [split_begin, split_end).
// Split s has the keys with absolute numbers [s, s + 1) * split_keys.
struct Task {
  const Sequence* sequence;
  int64_t kv_head;
  int64_t row_begin, row_end;
  int64_t split_begin, split_end, split_keys;
  bool rows_in_lanes;
  Covers covers;
  const IntegerProducts* integers;  // null: none of the processor's own
  bool (*given_up)();               // asked before each split: the task's result will not be read
  void* partial;  // where the states of its splits go, merged; null: the task ends its rows in the output
};

// What the sizes of a task's memory follow from.
struct TaskShape {
  int64_t rows, head_dim, v_head_dim;
  int64_t splits;
  bool rows_in_lanes;
  const ProgramPlan* program;
  const IntegerProducts* integers = nullptr;
};

// Keys of a block of the backward pass, which begin at their multiples.
constexpr int64_t gradient_block = 96;

// Whether a task is the first, or the last, to add to a block of dk and dv.
struct Turn {
  bool first, last;
};

// A task of the backward pass is rows [row_begin, row_end) of one sequence and KV head, over all keys that they attend.
// Blocks come in rising order. What several tasks add up in the same memory they add in a fixed order: each waits for
// its turn at a block of keys, and then passes it on.
struct GradientTask {
  const Sequence* sequence;
  int64_t kv_head;
  int64_t row_begin, row_end;
  Covers covers;
  RowTensor dk_sums, dv_sums;  // where sums of dk and dv are kept, in the compute type
  double* dsinks;              // of the heads of the group: what this task adds; null: not wanted
  int64_t blocks;              // of the longest sequence

  void* turns;
  Turn (*await_keys)(void* turns, int64_t block);
  void (*pass_keys)(void* turns, int64_t block);
  // The same for dmask, null unless tasks share elements of it. Every task takes part in every block, 0 to `blocks`;
  // the last is where sums over all keys are added.
  void (*await_mask)(void* turns, int64_t block);
  void (*pass_mask)(void* turns, int64_t block);
};

// One arithmetic.
struct KernelsOf {
  int64_t tile_rows;              // rows of a register tile: tasks with rows in lanes start at its multiples
  CoverGrid few_rows, many_rows;  // of Covers
  size_t (*workspace_bytes)(const TaskShape&);
  size_t (*partial_bytes)(const TaskShape&);
  void (*attend)(const Attention&, const Task&, void* workspace);
  // Merges the partial states of the `parts` tasks that one unit was cut into, stored at `task.partial` every `stride`
  // bytes, and writes the output. Part i is subtree task.split_begin + i of those that have as many splits as a part.
  void (*merge)(const Attention&, const Task& task, int64_t parts, size_t stride, void* workspace);
  // Merges the subtrees of the task's sequence, whose numbers are within the task's splits, and writes the output.
  void (*merge_subtrees)(const Attention&, const Task& task, void* workspace);
  // The backward pass.
  size_t (*gradient_bytes)(const TaskShape&);
  void (*differentiate)(const Gradients&, const GradientTask&, void* workspace);
  // Tokens [begin, end) of all batch entries, counted one entry after another.
  void (*rotate)(const Rotary&, int64_t begin, int64_t end);
};

struct Kernels {
  const char* name;
  KernelsOf of[arithmetics];
  void (*add_weighted)(const WeightedSum&);
  bool (*quantize)(const RowQuantization&);  // false: the row holds NaN, infinity or values too large for a scale

  // Of an instruction set that adds instructions to another one: its products, and whose everything else is.
  const IntegerProducts* integers = nullptr;
  const Kernels* base = nullptr;

  const KernelsOf& operator[](Arithmetic arithmetic) const { return of[int(arithmetic)]; }
};

}  // namespace gqa
