// refusal.h: why a call is refused, as numbers and names. gqa/refusals.py makes sentences of them.
#pragma once

#include "tensor.h"

namespace gqa {

// One name for each sentence.
// clang-format off
#define GQA_RULES(X) \
  /* of kinds */                       X(tensor_kind) X(quantized) X(byte_order) X(float_dtype) X(mask_dtype) X(mask_grad) \
    X(scale_dtype) X(integer_dtype) X(dtype_as) X(out_dtype) X(device) X(exchange) X(integer) X(flag) X(real) \
    X(window_kind) X(layout_kind) X(dtype_name) X(stores) X(table) \
  /* of values */                      X(layout_name) X(bounds) X(at_least) X(finite) X(magnitude) X(not_negative) \
    X(overflow) X(length) \
  /* of shapes */                      X(missing) X(no_keys) X(axes) X(axes_as) X(at_most) X(heads) X(size_as) \
    X(count_as) X(shape) X(scale) X(broadcast) \
  /* of memory */                      X(read_only) X(shares_itself) X(overlap) X(overlap_scale) \
  /* of score programs */             X(program_kind) X(program_dtype) X(program_arrays) X(program_rank) \
    X(program_empty) X(program_value) X(program_constant) \
  /* of caches */                      X(cache_axes) X(shares_cache) X(not_finite) X(taken) X(capacity) X(dropped) \
    X(lengths_alone) X(packed) \
  /* of the rows of gqa's own tables */ X(rows) X(store) X(run) X(sequence) X(keys) X(origin) X(masked_sequence) \
    X(slot) X(subtree) X(contiguous)
// clang-format on

enum class Rule : uint8_t {
#define GQA_NAME(rule) rule,
  GQA_RULES(GQA_NAME)
#undef GQA_NAME
};

// Which argument broke which rule; a rule's sentence needs some of the other fields.
struct Refusal {
  Rule rule;
  const char* argument;
  const char* other;  // an argument that it is held against
  const char* axis;   // one, or a list of them
  int64_t index, number, expected, limit;
  double real;
  DType type, expected_type;
  Shape shape, expected_shape;
};

}  // namespace gqa
