// kernel.cpp: what one instruction set offers. Compiled once for each, with GQA_ISA naming its namespace and flags.
//
// Everything but `kernels` sits in an anonymous namespace, and nothing here uses standard containers or algorithms,
// statics with constructors, exceptions or allocation: an inline function shared with another instruction set's copy
// could be the one that the linker keeps for everybody.
#include "channels.h"
#include "merge_tree.h"
#include "rotary.h"
#include "rows.h"
#include "weighted_sum.h"

namespace gqa {
namespace GQA_ISA {
namespace {

TaskShape shape_of(const Attention& a, const Task& task) {
  return {task.row_end - task.row_begin, a.head_dim, a.v_head_dim, task.split_end - task.split_begin,
          task.rows_in_lanes};
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

  const size_t bytes = States::bytes(shape);
  char* const slots = scratch.take<char>(int64_t(bytes) * MergeTree<States>::depth(shape.splits));
  auto slot = [&](int i) {
    return States::at(i == 0 && task.partial ? task.partial : slots + size_t(i) * bytes, shape);
  };
  MergeTree<States> tree;
  for (int64_t split = task.split_begin; split < task.split_end; split++) {
    const Interval part = within_split(task, split, keys);
    if (part.begin >= part.end) continue;
    const States states = slot(tree.waiting());
    states.clear();
    loop.run(part, states);
    tree.add(states, split);
  }
  if (tree.waiting() == 0) {
    tree.add(slot(0), task.split_begin);
    slot(0).clear();
  }
  const States& total = tree.total();
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

template <class T>
constexpr KernelsOf kernels_of = {tile_lanes<T>, workspace_bytes<T>, partial_bytes<T>, attend<T>, merge<T>, rotate<T>};

}  // namespace

#define GQA_TEXT(name) #name
#define GQA_NAME(name) GQA_TEXT(name)
extern const Kernels kernels;
constexpr Kernels kernels = {GQA_NAME(GQA_ISA), {kernels_of<float>, kernels_of<double>}, add_weighted};

}  // namespace GQA_ISA
}  // namespace gqa
