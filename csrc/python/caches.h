// caches.h: what the extension's functions for caches have in common.
#pragma once

#include "../append.h"
#include "calls.h"
#include "scalars.h"

namespace gqa {

// New tokens: a tuple (k, v, lengths), of which k and v may both be None.
struct NewTokens {
  explicit NewTokens(PyObject* tuple) : items(items_of(tuple, 3, "the new tokens")), lengths(items[2], "lengths") {}
  void read(Views& views);
  bool given() const { return items[0] != Py_None || items[1] != Py_None; }

  PyObject* const* const items;
  const IntegerList lengths;
  Tensor k, v;
};

[[noreturn]] void refuse_size(Rule rule, const char* argument, const char* axis, int64_t number, int64_t expected,
                              const char* other);

// Holds the axes, heads and channels of q against the storage, in words that speak of the cache.
void check_query(const TensorView& q, const TensorView& keys, int axes, Layout layout);

}  // namespace gqa
