// shard.h: one rank's slots of sequences whose tokens are dealt out, and what it does of a step: the states of its own
// blocks, and the order in which those of all ranks are merged. Numbers only.
#pragma once

#include <vector>

#include "deal.h"
#include "slots.h"

namespace gqa {

class Shard {
 public:
  // slots: whose lengths, capacity and window are those of whole sequences; it must outlive this. room: slots that this
  // rank has for each of them: the n-th of its tokens is in slot n % room.
  Shard(const Slots& slots, const Deal& deal, int64_t room)
      : slots_(slots), deal_(deal), room_(room), counts_(size_t(deal.ranks())) {}

  // Which blocks `queries` rows of each sequence need, of what is there and new tokens that are accepted. left: how
  // many tokens before its own a row sees. False if a ring has dropped some: refusal() says which.
  bool plan(int64_t queries, int64_t left);

  // How many blocks each rank then has the states of.
  const std::vector<int64_t>& block_counts() const { return counts_; }

  // This rank's blocks, each as a sequence over its slots (store 0) and new tokens (store 1), with a slot for its
  // states; in the order of sequences and blocks.
  bool list_own(SequenceList& sequences) const;
  // All rows, each with the subtrees that it merges. first_slots: where the states of each rank begin, slot_step: how
  // far they are apart.
  bool list_merges(SequenceList& sequences, std::vector<int64_t> first_slots, int64_t slot_step) const;

  // Where those of the new tokens go that this rank holds.
  std::vector<TokenMove> moves() const;

  const Refusal& refusal() const { return refusal_; }

 private:
  struct Need {
    int64_t rows, padding, position, keys, block_count;
  };

  // Calls f(first, slot, count) for where tokens of a block of this rank are.
  template <class F> void each_place(int64_t first, int64_t last, F f) const {
    const int64_t before = deal_.held(first);
    each_span(before, before + last - first, room_,
              [&](int64_t held, int64_t count) { f(first + held - before, held % room_, count); });
  }

  const Slots& slots_;
  const Deal deal_;
  const int64_t room_;
  std::vector<Need> needs_;
  std::vector<Block> blocks_;  // of all sequences
  std::vector<int64_t> counts_;
  Refusal refusal_{};
};

}  // namespace gqa
