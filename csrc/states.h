// states.h: attention over parts of the keys, put together. `StateMerge` describes one call over plain memory.
//
// What is merged here are states as calls return them: (out, lse), already divided by the sum of the weights. A call's
// own tasks keep them raw, (o, m, l), and merge those in the order of a tree (kernels/states.h, kernels/merge_tree.h):
// that is the form to exchange where a result must not depend on how keys are dealt out.
#pragma once

#include "attention.h"

namespace gqa {

// One part: out has `axes` axes of rows and one of channels, lse the axes of rows. Strides are in bytes.
struct State {
  const char *out, *lse;
  DType out_type, lse_type;  // lse: f32 or f64
  const int64_t *out_strides, *lse_strides;
};

constexpr int max_state_axes = 63;

struct StateMerge {
  int axes;
  const int64_t* shape;  // of the rows
  int64_t channels;
  const State* parts;  // at least one
  int64_t part_count;

  char *out, *lse;
  DType out_type, lse_type;
  const int64_t *out_strides, *lse_strides;

  int threads;
};

// Throws std::bad_alloc before anything is written when the scratch memory cannot be had.
void merge(const StateMerge& merge);

// What a kernel does for one row: the sum of weights times rows, divided by a number.
struct WeightedRow {
  const char* row;
  int64_t channel_stride;
  DType type;
  double weight;
};
struct WeightedSum {
  const WeightedRow* rows;
  int64_t count, channels;
  double divisor;
  char* out;
  int64_t out_channel_stride;
  DType out_type;
};

}  // namespace gqa
