// digest.h: a number that tells the arguments of one call from those of another. Ranks compare it, whatever their
// processors and however their tensors lie in memory.
#pragma once

#include <string_view>

#include "call.h"

namespace gqa {

class Digest {
 public:
  void add(int64_t number) {
    value_ = (value_ ^ uint64_t(number)) * 0x9E3779B97F4A7C15u;
    value_ ^= value_ >> 32;
  }
  void add(double number);
  void add(std::string_view text);
  void add(const std::vector<int64_t>& numbers);

  // Type and shape, and, unless some of it is padding, the elements.
  void add(const TensorView& x, bool whole);
  void add(const Tensor& x, bool whole);

  // Whatever all ranks must say of a call besides its tensors q, k and v.
  void add(const Options& options);

  int64_t value() const { return int64_t(value_); }

 private:
  uint64_t value_ = 0;
};

}  // namespace gqa
