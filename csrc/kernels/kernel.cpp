// kernel.cpp: what one instruction set offers. Compiled once for each, with GQA_ISA naming its namespace and flags.
//
// Everything but `kernels` sits in an anonymous namespace, and nothing here uses standard containers or algorithms,
// statics with constructors, exceptions or allocation: an inline function shared with another instruction set's copy
// could be the one that the linker keeps for everybody.
#include "channels.h"
#include "gradient_loop.h"
#include "merge_tree.h"
#include "quantization.h"
#include "rotary.h"
#include "rows.h"
#include "weighted_sum.h"

namespace gqa {
namespace GQA_ISA {
namespace {

TaskShape shape_of(const Attention& a, const Task& task) {
  return {task.row_end - task.row_begin,
          a.head_dim,
          a.v_head_dim,
          task.split_end - task.split_begin,
          task.rows_in_lanes,
          a.program ? a.program->plan : nullptr,
          task.integers};
}

// The keys that some row of a task attends.
Interval attended_by(const Attention& a, const Task& task) {
  const int64_t group = a.query_heads / a.kv_heads;
  return {attended(a, *task.sequence, task.row_begin / group).begin,
          attended(a, *task.sequence, (task.row_end - 1) / group).end};
}

// The keys of a split that are among `keys`, counted as those are, from the sequence's first.
Interval within_split(const Task& task, int64_t split, Interval keys) {
  const int64_t first = split * task.split_keys - task.sequence->origin;
  return {max(keys.begin, first), min(keys.end, first + task.split_keys)};
}

bool in_one_split(const Task& task, Interval keys) {
  const int64_t origin = task.sequence->origin;
  return keys.begin >= keys.end || (origin + keys.begin) / task.split_keys == (origin + keys.end - 1) / task.split_keys;
}

// The states of a task's splits, or subtrees, on their way up the tree.
template <class States> class WaitingStates {
 public:
  // partial: where the first ones go, and with them the total; null: as the others.
  WaitingStates(const TaskShape& shape, Scratch& scratch, void* partial)
      : shape_(shape),
        partial_(partial),
        slots_(scratch.take<char>(int64_t(States::bytes(shape)) * MergeTree<States>::depth(shape.splits))) {}

  // Room for the states of the next split, cleared; they must be added.
  States next(int64_t split) {
    tree_.advance(split);
    const int i = tree_.waiting();
    void* const memory = i == 0 && partial_ ? partial_ : slots_ + size_t(i) * States::bytes(shape_);
    const States states = States::at(memory, shape_);
    states.clear();
    return states;
  }
  void add(const States& states, int64_t split) { tree_.add(states, split); }

  const States& total() {
    if (tree_.waiting() == 0) tree_.add(next(0), 0);
    return tree_.total();
  }

 private:
  const TaskShape& shape_;
  void* const partial_;
  char* const slots_;
  MergeTree<States> tree_;
};

// The states of the task's splits, one after another, merged as merge_tree.h says, and then stored or written.
template <class T, class Loop> void attend_with(const Attention& a, const Task& task, void* workspace) {
  using States = typename Loop::States;
  const TaskShape shape = shape_of(a, task);
  const Interval keys = attended_by(a, task);
  Scratch scratch(workspace);
  const typename Loop::Buffers buffers(shape, scratch);
  Loop loop(a, task, buffers);
  if constexpr (Loop::has_quicker_way)
    if (!task.partial && in_one_split(task, keys) && loop.attend_at_once(keys)) return;

  loop.load_queries();

  WaitingStates<States> waiting(shape, scratch, task.partial);
  for (int64_t split = task.split_begin; split < task.split_end; split++) {
    const Interval part = within_split(task, split, keys);
    if (part.begin >= part.end) continue;
    if (task.given_up()) return;
    const States states = waiting.next(split);
    loop.run(part, states);
    waiting.add(states, split);
  }
  const States& total = waiting.total();
  if (!task.partial) loop.write(total);
}

template <class T> void attend(const Attention& a, const Task& task, void* workspace) {
  if (task.rows_in_lanes) attend_with<T, RowsInLanes<T>>(a, task, workspace);
  else attend_with<T, ChannelsInLanes<T>>(a, task, workspace);
}

template <class T> size_t partial_bytes(const TaskShape& shape) {
  return shape.rows_in_lanes ? LaneStates<T>::bytes(shape) : RowStates<T>::bytes(shape);
}

template <class T> size_t workspace_bytes(const TaskShape& shape) {
  Scratch scratch(nullptr);
  if (shape.rows_in_lanes) typename RowsInLanes<T>::Buffers(shape, scratch);
  else typename ChannelsInLanes<T>::Buffers(shape, scratch);
  scratch.take<char>(int64_t(partial_bytes<T>(shape)) * MergeTree<RowStates<T>>::depth(shape.splits));
  return scratch.used();
}

template <class T, class Loop>
void merge_with(const Attention& a, const Task& task, int64_t parts, size_t stride, void* workspace) {
  const TaskShape shape = shape_of(a, task);
  MergeTree<typename Loop::States> tree;
  for (int64_t i = 0; i < parts; i++)
    tree.add(Loop::States::at(static_cast<char*>(task.partial) + size_t(i) * stride, shape), task.split_begin + i);
  Scratch scratch(workspace);
  const typename Loop::Buffers buffers(shape, scratch);
  Loop(a, task, buffers).write(tree.total());
}

template <class T> void merge(const Attention& a, const Task& task, int64_t parts, size_t stride, void* workspace) {
  if (task.rows_in_lanes) merge_with<T, RowsInLanes<T>>(a, task, parts, stride, workspace);
  else merge_with<T, ChannelsInLanes<T>>(a, task, parts, stride, workspace);
}

template <class T, class Loop> void merge_subtrees_with(const Attention& a, const Task& task, void* workspace) {
  const TaskShape shape = shape_of(a, task);
  Scratch scratch(workspace);
  const typename Loop::Buffers buffers(shape, scratch);
  WaitingStates<typename Loop::States> waiting(shape, scratch, nullptr);
  const Sequence& sequence = *task.sequence;
  for (const Subtree* x = sequence.subtrees; x < sequence.subtrees + sequence.subtree_count; x++) {
    const typename Loop::States states = waiting.next(x->number);
    read_rows(a, task, x->slot, states);
    waiting.add(states, x->number);
  }
  Loop(a, task, buffers).write(waiting.total());
}

template <class T> void merge_subtrees(const Attention& a, const Task& task, void* workspace) {
  if (task.rows_in_lanes) merge_subtrees_with<T, RowsInLanes<T>>(a, task, workspace);
  else merge_subtrees_with<T, ChannelsInLanes<T>>(a, task, workspace);
}

template <class T>
constexpr KernelsOf kernels_of = {tile_lanes<T>,
                                  {max_rows_at_once<T>, channels_block_of<T>, channels_part_of<T>},
                                  {tile_lanes<T>, rows_block, rows_part},
                                  workspace_bytes<T>,
                                  partial_bytes<T>,
                                  attend<T>,
                                  merge<T>,
                                  merge_subtrees<T>,
                                  gradient_bytes<T>,
                                  differentiate<T>,
                                  rotate<T>};

}  // namespace

#define GQA_TEXT(name) #name
#define GQA_NAME(name) GQA_TEXT(name)
extern const Kernels kernels;
constexpr Kernels kernels = {GQA_NAME(GQA_ISA), {kernels_of<float>, kernels_of<double>}, add_weighted, quantize};

}  // namespace GQA_ISA
}  // namespace gqa
