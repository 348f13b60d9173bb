#include "sequence_list.h"

#include <algorithm>
#include <new>

namespace gqa {

void SequenceList::set_bounds(int64_t batch, int64_t queries, const std::vector<StoreShape>& stores,
                              const MaskShape* mask) {
  batch_ = batch, queries_ = queries;
  stores_ = &stores;
  has_mask_ = mask != nullptr;
  if (mask) mask_ = *mask;
}

void SequenceList::reserve(int64_t sequences, int64_t runs) {
  if (size_t(sequences) > sequences_.max_size() || size_t(runs) > runs_.max_size()) throw std::bad_alloc();
  sequences_.reserve(size_t(sequences));
  runs_.reserve(size_t(runs));
}

bool SequenceList::add_run(int64_t store, int64_t batch, int64_t token, int64_t count) {
  if (count == 0) return true;
  const int64_t index = int64_t(runs_.size());
  if (store < 0 || store >= int64_t(stores_->size())) return refuse(Rule::store, index, store);
  const StoreShape& shape = (*stores_)[size_t(store)];
  if (count < 0 || batch < 0 || batch >= shape.batch || token < 0 || token > shape.tokens - count)
    return refuse(Rule::run, index);
  if (count > max_tokens - run_keys_) return refuse(Rule::keys, int64_t(sequences_.size()), max_tokens, max_tokens);
  runs_.push_back({run_keys_, count, store, batch, token});
  run_keys_ += count;
  return true;
}

bool SequenceList::add_subtree(int64_t number, int64_t slot) {
  const int64_t index = int64_t(subtrees_.size());
  const int64_t least = index > subtree_begin_ ? subtrees_.back().number + 1 : 0;
  if (number < least || number > max_tokens) return refuse(Rule::subtree, index, number, least);
  if (slot < 0 || slot >= read_slots_) return refuse(Rule::slot, index, slot, read_slots_ - 1);
  subtrees_.push_back({number, slot});
  return true;
}

bool SequenceList::add_sequence(const Sequence& s) {
  const int64_t index = int64_t(sequences_.size());
  if (s.batch < 0 || s.batch >= batch_ || s.token < 0 || s.queries < 0 || s.padding < 0 || s.token > queries_ ||
      s.queries > queries_ - s.token || s.padding > queries_ - s.token - s.queries)
    return refuse(Rule::sequence, index);
  if (s.keys < 0 || s.keys > run_keys_) return refuse(Rule::keys, index, s.keys, run_keys_);
  if (s.origin < 0 || s.origin > max_tokens - s.keys) return refuse(Rule::origin, index, s.origin, max_tokens - s.keys);
  if (has_mask_ && s.queries > 0 &&
      (s.mask_batch < 0 || s.mask_batch >= mask_.batch || s.mask_query < 0 || s.mask_query > mask_.queries ||
       s.queries > mask_.queries - s.mask_query || s.mask_key < 0 || s.mask_key > mask_.keys ||
       s.keys > mask_.keys - s.mask_key))
    return refuse(Rule::masked_sequence, index);
  if (s.whole_queries < 0 || s.whole_queries > max_tokens || s.whole_keys < 0 || s.whole_keys > max_tokens)
    return refuse(Rule::sequence, index);
  if (written_slots_ >= 0 && (s.slot < 0 || s.slot >= written_slots_))
    return refuse(Rule::slot, index, s.slot, written_slots_ - 1);
  sequences_.push_back(s);
  sequences_.back().offset = std::clamp(s.offset, -unbounded / 2, unbounded / 2);
  sequences_.back().run_count = int64_t(runs_.size()) - run_begin_;
  sequences_.back().subtree_count = int64_t(subtrees_.size()) - subtree_begin_;
  run_begin_ = int64_t(runs_.size());
  subtree_begin_ = int64_t(subtrees_.size());
  run_keys_ = 0;
  return true;
}

const std::vector<Sequence>& SequenceList::finish() {
  const Run* runs = runs_.data();
  const Subtree* subtrees = subtrees_.data();
  for (Sequence& sequence : sequences_) {
    sequence.runs = runs;
    runs += sequence.run_count;
    sequence.subtrees = subtrees;
    subtrees += sequence.subtree_count;
  }
  return sequences_;
}

bool SequenceList::refuse(Rule rule, int64_t index, int64_t number, int64_t expected) {
  refusal_.rule = rule;
  refusal_.index = index, refusal_.number = number, refusal_.expected = expected;
  return false;
}

}  // namespace gqa
