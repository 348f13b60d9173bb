// slots_argument.h: the slots of a cache as Python has them.
#pragma once

#include "../slots.h"
#include "caches.h"

namespace gqa {

// Storage, and Python's lists of what is in it: (keys, values, lengths, oldest, capacity, window or None).
class SlotsArgument {
 public:
  explicit SlotsArgument(PyObject* tuple);

  void read_storage(Views& views);

  // Checks new tokens and converts them to what is stored. out: what the result would be written to.
  void accept(Append& append, const NewTokens& tokens, const TensorView& out);

  // Writes them, and then counts them, here and in both lists.
  void write(const Append& append, const std::vector<TokenMove>& moves);

 private:
  PyObject* const* const items_;

 public:
  Slots slots;
  Tensor keys, values;
};

}  // namespace gqa
