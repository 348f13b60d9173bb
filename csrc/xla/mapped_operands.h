// mapped_operands.h: what a call is given by XLA, with axes in front of it, as JAX's vmap puts them there.
//
// Knows buffers in C order, and nothing of XLA. Every entry along the axes in front is a call of its own; all of them
// are one call with a larger batch wherever that takes no copy.
#pragma once

#include <vector>

#include "../call.h"

namespace gqa {

// What attention may be given, in the order of gqa.jax's operands.
enum Operand { q, k, v, past_key, past_value, mask, sinks, query_offset, kv_lengths, operand_count };

// A buffer in C order. Its own axes are the last ones. Those before them, which vmap put there, are each as large as
// those of the results, or 1 if the buffer is the same along them.
struct Buffer {
  char* data = nullptr;
  const int64_t* sizes = nullptr;
  int axes = 0, own_axes = -1;  // own_axes -1: no buffer
  DType type = DType::none;     // of tensors
  bool is_signed = false;       // of whole numbers
  int64_t bytes = 0;            // of an element

  bool given() const { return own_axes >= 0; }
  int front_axes() const { return axes - own_axes; }
  const int64_t* own_sizes() const { return sizes + front_axes(); }
  int64_t own_bytes() const;  // of an entry
};

// A view of the own axes of a buffer, whose entry begins at `data`.
TensorView own_view(const Buffer& x, char* data);

class MappedOperands {
 protected:
  // The calls that are done as one: entry `first` alone, or all of them.
  struct Entries {
    int64_t first, count;
  };

  // result: one of q's axes, which has all axes in front at their full size.
  MappedOperands(const Buffer (&operands)[operand_count], const Buffer& result)
      : operands_(operands), result_(result) {}

  // Whether the buffers have as many axes as those of a call, in front and otherwise; what Call does not see.
  bool operands_are_well_formed() const;
  bool fits(const Buffer& x, int fewest, int most) const;
  bool is_result(const Buffer& x, int axes) const;

  int64_t entries() const;
  int64_t batch() const { return operands_[q].own_axes == 4 ? operands_[q].own_sizes()[0] : 1; }
  bool is_same_for_all(const Buffer& x) const;
  bool differs_everywhere(const Buffer& x) const;
  bool folds(const Buffer& x) const;
  bool operands_are_one_call() const;

  char* entry(const Buffer& x, int64_t number) const;
  TensorView batched_view(const Buffer& x, const Entries& entries, int axes = 4) const;
  TensorView mask_view(const Entries& entries) const;
  Tensor tensor(Operand operand, const char* name, const Entries& entries) const;
  Integers integers(const Buffer& x, const Entries& entries, std::vector<int64_t>& values) const;

  const Buffer (&operands_)[operand_count];
  const Buffer& result_;
};

}  // namespace gqa
