// ranges.h: which keys of a block a tile of rows attends: none (skip it), all (no masking), or some.
//
// Whatever hides keys answers that question: lengths, causal and windows here, from positions alone; a mask tensor in
// mask.h, from what it holds.
#pragma once

#include "keys.h"

namespace gqa {
namespace GQA_ISA {
namespace {

struct Interval {
  int64_t begin, end;
};

// The keys that causal, window and lengths allow to query i; both ends grow with i.
GQA_INLINE Interval attended(const Attention& a, const Sequence& sequence, int64_t i) {
  const int64_t position = sequence.offset + i;
  return {max(0, position - a.left), max(0, min(sequence.keys, position + a.right + 1))};
}

// The same for the queries first to last, of all the keys that the sequence has, here or elsewhere.
GQA_INLINE Interval attended_anywhere(const Attention& a, const Sequence& sequence, int64_t first, int64_t last) {
  const int64_t keys = max(sequence.keys, sequence.whole_keys - sequence.origin);
  return {max(-sequence.origin, sequence.offset + first - a.left), min(keys, sequence.offset + last + a.right + 1)};
}

enum class Cover { skip, whole, partial };

// Keys of a block, counted from its first: some row attends each of [from, to), every row each of [all_from, all_to).
struct BlockRange {
  int from, to, all_from, all_to;

  Cover cover() const {
    return from >= to ? Cover::skip : all_from <= from && to <= all_to ? Cover::whole : Cover::partial;
  }
};

// For the queries first to last and the `count` keys from `begin` on.
GQA_INLINE BlockRange block_range(const Attention& a, const Sequence& sequence, int64_t first, int64_t last,
                                  int64_t begin, int count) {
  const Interval low = attended(a, sequence, first), high = attended(a, sequence, last);
  auto within = [=](int64_t key) { return int(max(0, min(key - begin, count))); };
  return {within(low.begin), within(high.end), within(high.begin), within(low.end)};
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
