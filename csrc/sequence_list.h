// sequence_list.h: the sequences of a call, and the runs of keys that each of them attends.
#pragma once

#include <vector>

#include "refusal.h"

namespace gqa {

// Positions and the bounds of windows can be added without overflow where keys are counted up to this.
constexpr int64_t max_tokens = unbounded / 4;

// What a mask broadcasts to, next to the heads of q.
struct MaskShape {
  int64_t batch, queries, keys;
};

class SequenceList {
 public:
  struct StoreShape {
    int64_t batch, tokens;
  };

  // What sequences must lie within: q of `batch` times `queries` tokens, stores, which
  // are not copied, and a mask unless it is null.
  void set_bounds(int64_t batch, int64_t queries, const std::vector<StoreShape>& stores, const MaskShape* mask);

  // Throws std::bad_alloc if there are too many to list.
  void reserve(int64_t sequences, int64_t runs);

  // False if what is added is not within the bounds: refusal() says why. A run of no tokens is none. A sequence attends
  // the runs added after the sequence before; Run::first and Sequence::runs are filled in here.
  bool add_run(int64_t store, int64_t batch, int64_t token, int64_t count);
  bool add_sequence(const Sequence& sequence);

  // In place of runs, where states are merged: those of a subtree. Numbers ascend within a sequence.
  bool add_subtree(int64_t number, int64_t slot);

  // How many slots for states there are: to write, one of which each sequence names, and to read. None are written
  // unless this is called.
  void set_slots(int64_t written, int64_t read) { written_slots_ = written, read_slots_ = read; }

  const Refusal& refusal() const { return refusal_; }

  // All of them, once all runs are there.
  const std::vector<Sequence>& finish();

 private:
  bool refuse(Rule rule, int64_t index, int64_t number = 0, int64_t expected = 0);

  int64_t batch_ = 0, queries_ = 0;
  const std::vector<StoreShape>* stores_ = nullptr;
  MaskShape mask_{};
  bool has_mask_ = false;
  int64_t written_slots_ = -1, read_slots_ = 0;
  std::vector<Run> runs_;
  std::vector<Subtree> subtrees_;
  std::vector<Sequence> sequences_;
  int64_t run_begin_ = 0, run_keys_ = 0, subtree_begin_ = 0;  // of the sequence that comes next
  Refusal refusal_{};
};

}  // namespace gqa
