// merge_tree.h: the order in which states of splits, or of parts that are whole subtrees of splits, are merged.
//
// Floating-point sums depend on their order, so the order must follow from the numbers of the splits alone. It is that
// of a balanced binary tree over all split numbers: node i of level n covers the splits [i, i + 1) * 2^n and merges its
// two halves, the later into the earlier; a half without keys is left out. Splits come in ascending order, and the tree
// is kept as a binary counter keeps a number: the next one's number says which nodes are complete. Whoever has merged a
// subtree already, another task, another machine, adds it as one, under the number of any split in it, and no bit of
// the result changes.
#pragma once

#include <stdint.h>

namespace gqa {
namespace GQA_ISA {
namespace {

template <class States> class MergeTree {
 public:
  // How many states wait at once, at most, while n consecutive splits are added: one for each bit of n, and one for
  // those before the first multiple of a large power of two.
  static int depth(int64_t n) {
    if (n <= 1) return 1;
    int bits = 1;
    for (; n > 0; n >>= 1) bits++;
    return bits;
  }

  int waiting() const { return count_; }

  // Merges what is complete once the next split, or subtree, is `number`, which must be higher than those before. The
  // smallest node that holds two numbers is as high as the first bit in which they differ.
  void advance(int64_t number) {
    while (count_ > 1 && (numbers_[count_ - 2] ^ numbers_[count_ - 1]) < (numbers_[count_ - 1] ^ number)) join();
  }

  // Adds the states of split, or subtree, `number`. They are merged in place later, and must stay where they are.
  void add(const States& states, int64_t number) {
    advance(number);
    states_[count_] = states;
    numbers_[count_++] = number;
  }

  // All states merged; there must be one.
  const States& total() {
    while (count_ > 1) join();
    return states_[0];
  }

 private:
  void join() {
    count_--;
    states_[count_ - 1].merge(states_[count_]);
  }

  static constexpr int most = 66;  // depth(2^63)
  States states_[most];
  int64_t numbers_[most];
  int count_ = 0;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
