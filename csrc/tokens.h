// tokens.h: new tokens of a cache: in the form in which they are stored, and written to where they belong.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "call.h"

namespace gqa {

// Keys or values as a store holds them: themselves if they are of its type, and otherwise a copy that is.
class StoredTokens {
 public:
  // counts: how many tokens of each batch entry are converted; what lies past them is read by nobody. False if int8
  // cannot represent them. Throws std::bad_alloc.
  bool convert(const Tensor& from, DType type, Layout layout, const int64_t* counts);

  const Tensor& tensor() const { return tensor_; }

 private:
  Tensor tensor_;
  std::unique_ptr<char[]> data_, scale_;
};

// A row of floats, or int8 with its scale, as another type of floats, rounded once.
void convert_row(const char* from, DType from_type, double scale, char* to, DType to_type, int64_t channels);

// Consecutive tokens of one batch entry (or page) of a tensor, and where another tensor takes them.
struct TokenMove {
  int64_t to_batch, to_token, batch, token, count;
};

// Calls f(start, count) for the pieces of [first, last) between multiples of size.
template <class F> void each_span(int64_t first, int64_t last, int64_t size, F f) {
  while (first < last) {
    const int64_t count = std::min(last - first, size - first % size);
    f(first, count);
    first += count;
  }
}

// Both of one type, and of four axes in the layout; scales move with their rows.
void move_tokens(const Tensor& to, const Tensor& from, const std::vector<TokenMove>& moves, Layout layout);

}  // namespace gqa
