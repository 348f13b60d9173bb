// deal.h: which rank holds which tokens of a sequence that is dealt out. Integers only.
//
// Tokens are dealt in blocks, each of which is a subtree of the tree in which attention merges its parts: 2^n pieces of
// many_rows_split_keys tokens, from a multiple of that. A rank hands over one state for each of its blocks, so few
// large blocks travel less; many small ones are even. While a sequence grows, all new tokens go to the rank whose block
// is open: so an aligned block can be no larger than what that rank may have too much. Blocks are dealt in turn, and
// are of one piece as long as each rank has fewer than 32 of them. From there on they grow with the sequence: whenever
// it has doubled, so have they. So no rank has more than a sixteenth too many tokens once each has 16 pieces, and the
// states of a rank grow by no more than 16 with each doubling: what travels hardly depends on the context.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plan.h"

namespace gqa {

// Tokens [first, last) of a sequence, of a subtree to which `piece` belongs.
struct Block {
  int64_t piece, first, last, owner;
};

class Deal {
 public:
  // window: of a cache that keeps the last tokens alone, in which blocks stop growing; 0: they go on.
  Deal(int64_t ranks, int64_t rank, int64_t window) : ranks_(ranks), rank_(rank), window_(window) {}

  int64_t ranks() const { return ranks_; }
  int64_t rank() const { return rank_; }

  // Calls f(block) for the blocks that tokens [first, last) lie in, cut to those.
  template <class F> void each_block(int64_t first, int64_t last, F f) const {
    while (first < last) {
      const int64_t number = first / piece, level = level_of(number), block = number >> level;
      const int64_t end = std::min(((block + 1) << level) * piece, last);
      f(Block{number, first, end, block % ranks_});
      first = end;
    }
  }

  // How many of the tokens before `token` this rank holds.
  int64_t held(int64_t token) const;

  // How many tokens this rank may have to hold of any `capacity` consecutive ones, from the first on without a window.
  int64_t room(int64_t capacity) const;

 private:
  static constexpr int64_t piece = many_rows_split_keys;
  static constexpr int64_t rounds = 16;  // in which ranks take their turns before blocks grow

  // The blocks of a piece's neighbourhood have 2^level pieces.
  int64_t level_of(int64_t number) const;
  int64_t most_levels() const;

  int64_t ranks_, rank_, window_;
};

}  // namespace gqa
