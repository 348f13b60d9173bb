// attention_calls.h: what the targets that attend share: options from a fuzzer's bytes, and what must hold of a call
// that was not refused.
#pragma once

#include <functional>

#include "tensors.h"

namespace gqa {

struct CallSizes {
  int64_t batch, kv_heads, group, queries, head_dim, v_head_dim;
};
CallSizes read_sizes(Input& input);
int64_t query_heads(const CallSizes& sizes);  // whatever is left of the product where it is too large

// Keys or values of any type, int8 with scales among them.
Tensor make_keys(Input& input, Tensors& tensors, const char* name, const Shape& shape);

// (batch, heads, tokens, channels) in a layout, with or without the batch.
Shape shape_in(Layout layout, int64_t batch, int64_t heads, int64_t tokens, int64_t channels, bool is_batched = true);

// The layout, numbers and flags; a mask and sinks for those sizes.
Options read_options(Input& input, Tensors& tensors, const CallSizes& sizes, int64_t mask_batch, int64_t keys);

// `prepare` sets a new call up, and returns false if it is refused. One that is not runs on every instruction set, with
// one thread and with several. Whatever is not an output must stay as it is; every element of `out` must be written
// (writes_all: or those of no sequence stay), and nothing between them; threads must not change a bit; and instruction
// sets must agree within rounding where inputs are ordinary. keys: how many a query attends at most. twin, unless it is
// null: a program that, with those arrays, must give the same bits.
void check_call(Input& input, Tensors& tensors, Options& options, const std::function<bool(Call&)>& prepare,
                int64_t keys, bool writes_all, const ScoreProgram* twin = nullptr,
                const std::vector<TensorView>& twin_captured = {});

}  // namespace gqa
