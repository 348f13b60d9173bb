// append.h: new tokens on their way into a cache: whether they fit, what they are stored as, and where they are
// written.
#pragma once

#include <memory>
#include <vector>

#include "tokens.h"

namespace gqa {

class Append {
 public:
  // keys, values: the storage, of four axes in the layout. All that is given here must outlive it.
  Append(const Tensor& keys, const Tensor& values, Layout layout) : keys_(keys), values_(values), layout_(layout) {}

  // Each returns false if the tokens are refused: refusal() says why. First: k and v are of `axes` axes (three: a batch
  // of one) of the storage's sizes, `batch` entries, and `tokens` tokens, or as many as k has where that is `any`.
  static constexpr int64_t any = -1;
  bool check(const Tensor& k, const Tensor& v, int axes, int64_t batch, int64_t tokens);
  // Then what the result would be written over.
  bool spares_inputs(const TensorView& out);
  // Then what is stored. counts: how many tokens each batch entry takes; others are not looked at. Throws
  // std::bad_alloc.
  bool convert(const int64_t* counts);

  int64_t tokens() const { return k_.data.shape[layout_.token]; }  // that are there for each batch entry

  // As they are stored, of four axes.
  const Tensor& k() const { return stored_k_.tensor(); }
  const Tensor& v() const { return stored_v_.tensor(); }
  void write(const std::vector<TokenMove>& moves) const;

  const Refusal& refusal() const { return refusal_; }

 private:
  bool check_shape(const Tensor& x, Shape expected);
  bool refuse(Rule rule, const char* argument, const char* other = "");

  const Tensor &keys_, &values_;
  const Layout layout_;
  Tensor k_, v_;
  StoredTokens stored_k_, stored_v_;
  Refusal refusal_{};
};

}  // namespace gqa
