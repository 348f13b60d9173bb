// kernel.cpp: what one instruction set offers. Compiled once for each, with GQA_ISA naming its namespace and flags.
//
// Everything but `kernels` sits in an anonymous namespace, and nothing here uses standard containers or algorithms,
// statics with constructors, exceptions or allocation: an inline function shared with another instruction set's copy
// could be the one that the linker keeps for everybody.
#include "channels.h"
#include "rotary.h"
#include "rows.h"

namespace gqa {
namespace GQA_ISA {
namespace {

TaskShape shape_of(const Attention& a, const Task& task) {
  return {task.row_end - task.row_begin, a.head_dim, a.v_head_dim, task.rows_in_lanes};
}

template <class T, class Loop> void attend_with(const Attention& a, const Task& task, void* workspace) {
  const TaskShape shape = shape_of(a, task);
  const int64_t group = a.query_heads / a.kv_heads;
  const Interval keys = {attended(a, *task.sequence, task.row_begin / group).begin,
                         attended(a, *task.sequence, (task.row_end - 1) / group).end};
  Scratch scratch(workspace);
  const typename Loop::Buffers buffers(shape, scratch);
  Loop loop(a, task, buffers);
  if (!task.partial && task.split_end - task.split_begin == 1)
    return loop.run(keys.begin, keys.end, [&](int64_t first, int64_t rows, const States<T>& states) {
      write_output(a, task, first, rows, states);
    });

  // Each split's states are merged into the task's, one split after another: always the same order and arithmetic.
  const States<T> total =
      States<T>::at(task.partial ? task.partial : scratch.take<char>(States<T>::bytes(shape.rows, a.v_head_dim)),
                    shape.rows, a.v_head_dim);
  total.clear(shape.rows);
  for (int64_t split = task.split_begin; split < task.split_end; split++) {
    const int64_t begin = most(keys.begin, split * task.split_keys),
                  end = least(keys.end, (split + 1) * task.split_keys);
    if (begin >= end) continue;
    loop.run(begin, end, [&](int64_t first, int64_t rows, const States<T>& states) {
      total.from(first - task.row_begin).merge(states, rows);
    });
  }
  if (!task.partial) write_output(a, task, task.row_begin, shape.rows, total);
}

template <class T> void attend(const Attention& a, const Task& task, void* workspace) {
  if (task.rows_in_lanes) attend_with<T, RowsInLanes<T>>(a, task, workspace);
  else attend_with<T, ChannelsInLanes<T>>(a, task, workspace);
}

template <class T> size_t partial_bytes(const TaskShape& shape) {
  return States<T>::bytes(shape.rows, shape.v_head_dim);
}

template <class T> size_t workspace_bytes(const TaskShape& shape) {
  Scratch scratch(nullptr);
  if (shape.rows_in_lanes) typename RowsInLanes<T>::Buffers(shape, scratch);
  else typename ChannelsInLanes<T>::Buffers(shape, scratch);
  scratch.take<char>(int64_t(partial_bytes<T>(shape)));
  return scratch.used();
}

template <class T> void merge(const Attention& a, const Task& task, size_t stride, void* workspace) {
  const int64_t rows = task.row_end - task.row_begin;
  const States<T> total = States<T>::at(workspace, rows, a.v_head_dim);
  total.clear(rows);
  for (int64_t split = task.split_begin; split < task.split_end; split++)
    total.merge(
        States<T>::at(static_cast<char*>(task.partial) + size_t(split - task.split_begin) * stride, rows, a.v_head_dim),
        rows);
  write_output(a, task, task.row_begin, rows, total);
}

template <class T>
constexpr KernelsOf kernels_of = {tile_lanes<T>, workspace_bytes<T>, partial_bytes<T>, attend<T>, merge<T>, rotate<T>};

}  // namespace

#define GQA_TEXT(name) #name
#define GQA_NAME(name) GQA_TEXT(name)
extern const Kernels kernels;
constexpr Kernels kernels = {GQA_NAME(GQA_ISA), {kernels_of<float>, kernels_of<double>}};

}  // namespace GQA_ISA
}  // namespace gqa
