// slots.h: the storage of a batch of sequences as rings: token p of each is in slot p % capacity. One that never fills
// up is an ordinary cache. Numbers only.
#pragma once

#include <vector>

#include "tokens.h"

namespace gqa {

class Slots {
 public:
  // window: how many tokens a ring keeps at least; 0: tokens past the capacity are refused.
  // lengths: how many tokens each sequence has been given; oldest: the first that no later one has overwritten.
  Slots(int64_t capacity, int64_t window, std::vector<int64_t> lengths, std::vector<int64_t> oldest)
      : capacity_(capacity), window_(window), lengths_(std::move(lengths)), oldest_(std::move(oldest)) {}

  int64_t batch() const { return int64_t(lengths_.size()); }
  int64_t capacity() const { return capacity_; }
  int64_t window() const { return window_; }
  const std::vector<int64_t>& lengths() const { return lengths_; }
  const std::vector<int64_t>& oldest() const { return oldest_; }
  int64_t longest() const;

  // Whether `counts` new tokens, of `tokens` that are there, fit; refusal() says why not.
  bool accepts(const Integers& counts, int64_t tokens);
  // How many each sequence takes, once they are accepted; empty: none at all.
  const std::vector<int64_t>& counts() const { return counts_; }

  // The sequences of `queries` rows each over the slots (store 0) and new tokens (store 1). With new tokens row i
  // stands at the i-th; without, the rows stand at the end. left: how many tokens before its own a row sees.
  bool list(SequenceList& sequences, int64_t queries, int64_t left);

  // Where the new tokens go; of more than the capacity, the last ones.
  std::vector<TokenMove> moves() const;
  // Once they are there.
  void advance();

  const Refusal& refusal() const { return refusal_; }

 private:
  bool refuse(Rule rule, int64_t index, int64_t number, int64_t expected, int64_t limit = 0);

  int64_t capacity_, window_;
  std::vector<int64_t> lengths_, oldest_, counts_;
  Refusal refusal_{};
};

}  // namespace gqa
