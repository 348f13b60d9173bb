#include "shard.h"

#include <algorithm>

namespace gqa {

bool Shard::plan(int64_t queries, int64_t left) {
  const std::vector<int64_t>& counts = slots_.counts();
  for (size_t b = 0; b < slots_.lengths().size(); b++) {
    const int64_t length = slots_.lengths()[b], count = counts.empty() ? 0 : counts[b];
    const int64_t rows = counts.empty() ? queries : std::min(queries, count);
    const int64_t position = counts.empty() ? length - queries : length;
    const int64_t first = std::clamp<int64_t>(position - left, 0, length + count);
    if (slots_.window() > 0 && first < slots_.oldest()[b]) {
      refusal_.rule = Rule::dropped;
      refusal_.index = int64_t(b), refusal_.number = first, refusal_.expected = slots_.oldest()[b];
      return false;
    }
    const size_t before = blocks_.size();
    if (rows > 0)
      deal_.each_block(first, length + count, [&](const Block& block) {
        blocks_.push_back(block);
        counts_[size_t(block.owner)]++;
      });
    needs_.push_back({rows, queries - rows, position, length + count, int64_t(blocks_.size() - before)});
  }
  return true;
}

bool Shard::list_own(SequenceList& sequences) const {
  const int64_t own = counts_[size_t(deal_.rank())];
  sequences.reserve(own, 2 * own);
  const Block* block = blocks_.data();
  int64_t slot = 0;
  for (int64_t b = 0; b < slots_.batch(); b++) {
    const Need& need = needs_[size_t(b)];
    const int64_t length = slots_.lengths()[size_t(b)];
    for (const Block* const end = block + need.block_count; block < end; block++) {
      if (block->owner != deal_.rank()) continue;
      bool listed = true;
      each_place(block->first, std::min(block->last, length), [&](int64_t, int64_t place, int64_t count) {
        listed = listed && sequences.add_run(0, b, place, count);
      });
      if (const int64_t first = std::max(block->first, length); first < block->last)
        listed = listed && sequences.add_run(1, b, first - length, block->last - first);
      Sequence s{};
      s.batch = s.mask_batch = b;
      s.queries = need.rows;
      s.origin = s.mask_key = block->first;
      s.offset = need.position - block->first;
      s.keys = block->last - block->first;
      s.whole_keys = need.keys;
      s.slot = slot++;
      if (!listed || !sequences.add_sequence(s)) return false;
    }
  }
  return true;
}

bool Shard::list_merges(SequenceList& sequences, std::vector<int64_t> first_slots, int64_t slot_step) const {
  sequences.reserve(slots_.batch(), 0);
  const Block* block = blocks_.data();
  for (int64_t b = 0; b < slots_.batch(); b++) {
    const Need& need = needs_[size_t(b)];
    for (const Block* const end = block + need.block_count; block < end; block++) {
      int64_t& slot = first_slots[size_t(block->owner)];
      if (!sequences.add_subtree(block->piece, slot)) return false;
      slot += slot_step;
    }
    Sequence s{};
    s.batch = b;
    s.queries = need.rows, s.padding = need.padding;
    if (!sequences.add_sequence(s)) return false;
  }
  return true;
}

std::vector<TokenMove> Shard::moves() const {
  std::vector<TokenMove> moves;
  for (size_t b = 0; b < slots_.counts().size(); b++) {
    const int64_t before = slots_.lengths()[b], end = before + slots_.counts()[b];
    deal_.each_block(std::max(before, end - slots_.capacity()), end, [&](const Block& block) {
      if (block.owner == deal_.rank())
        each_place(block.first, block.last, [&](int64_t token, int64_t place, int64_t count) {
          moves.push_back({int64_t(b), place, int64_t(b), token - before, count});
        });
    });
  }
  return moves;
}

}  // namespace gqa
