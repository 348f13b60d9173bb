#include "slots.h"

#include <algorithm>

namespace gqa {
int64_t Slots::longest() const {
  int64_t longest = 0;
  for (size_t b = 0; b < lengths_.size(); b++)
    longest = std::max(longest, lengths_[b] + (counts_.empty() ? 0 : counts_[b]));
  return longest;
}

bool Slots::accepts(const Integers& counts, int64_t tokens) {
  const size_t batch = lengths_.size();
  if (counts.given() && (counts.shape.axes != 1 || counts.shape.sizes[0] != int64_t(batch))) {
    refusal_.shape = counts.shape;
    refusal_.expected_shape = {1, {int64_t(batch)}};
    return refuse(Rule::shape, 0, 0, 0);
  }
  std::vector<int64_t> taken(batch, tokens);
  for (size_t b = 0; b < batch; b++) {
    if (counts.given()) taken[b] = counts.at(int64_t(b));
    if (taken[b] < 0 || taken[b] > tokens) return refuse(Rule::taken, int64_t(b), taken[b], tokens);
    if (window_ == 0 && taken[b] > capacity_ - lengths_[b])
      return refuse(Rule::capacity, int64_t(b), lengths_[b], taken[b], capacity_);
  }
  counts_ = std::move(taken);
  return true;
}

bool Slots::list(SequenceList& sequences, int64_t queries, int64_t left) {
  sequences.reserve(batch(), 3 * batch());
  for (int64_t b = 0; b < batch(); b++) {
    const int64_t length = lengths_[size_t(b)], count = counts_.empty() ? 0 : counts_[size_t(b)];
    Sequence s{};
    s.queries = counts_.empty() ? queries : std::min(queries, count);
    s.padding = queries - s.queries;
    const int64_t position = counts_.empty() ? length - queries : length;
    // A ring lists what its first query sees; a storage without a window lists all it has.
    if (window_ > 0 && left < unbounded) {
      s.origin = std::max<int64_t>(position - left, 0);
      if (s.origin < oldest_[size_t(b)]) return refuse(Rule::dropped, b, s.origin, oldest_[size_t(b)]);
    }
    s.batch = s.mask_batch = b;
    s.mask_key = s.origin;
    s.offset = position - s.origin;
    s.keys = length + count - s.origin;
    bool listed = true;
    each_span(s.origin, length, capacity_,
              [&](int64_t p, int64_t n) { listed = listed && sequences.add_run(0, b, p % capacity_, n); });
    if (!listed || !sequences.add_run(1, b, 0, count) || !sequences.add_sequence(s)) {
      refusal_ = sequences.refusal();
      return false;
    }
  }
  return true;
}

std::vector<TokenMove> Slots::moves() const {
  std::vector<TokenMove> moves;
  moves.reserve(counts_.size());
  for (size_t b = 0; b < counts_.size(); b++) {
    const int64_t before = lengths_[b], end = before + counts_[b];
    each_span(std::max(before, end - capacity_), end, capacity_,
              [&](int64_t p, int64_t n) { moves.push_back({int64_t(b), p % capacity_, int64_t(b), p - before, n}); });
  }
  return moves;
}

void Slots::advance() {
  for (size_t b = 0; b < counts_.size(); b++) {
    lengths_[b] += counts_[b];
    oldest_[b] = std::max(oldest_[b], lengths_[b] - capacity_);
  }
  counts_.clear();
}

bool Slots::refuse(Rule rule, int64_t index, int64_t number, int64_t expected, int64_t limit) {
  refusal_.rule = rule;
  refusal_.argument = "lengths";
  refusal_.index = index, refusal_.number = number, refusal_.expected = expected, refusal_.limit = limit;
  return false;
}

}  // namespace gqa
