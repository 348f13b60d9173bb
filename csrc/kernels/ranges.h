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

GQA_INLINE KeyCover cover_of(const Covers& covers, int64_t tile, int64_t block) {
  return covers.at ? covers.at[tile * covers.blocks + block - covers.first_block] : covers.otherwise;
}
// Whether a block is hidden from all tiles.
GQA_INLINE bool hides(const Covers& covers, int64_t block) {
  return covers.any && covers.any[block - covers.first_block].visible == 0;
}

// What a KeyCover leaves of a block's keys [0, count), the first of which is `skipped` keys past its multiple: some row
// may attend each of [from, to), and the mask hides none of [whole_from, whole_to) from any.
struct CoverRange {
  int from, to, whole_from, whole_to;
};
GQA_INLINE CoverRange cover_range(KeyCover cover, int part_keys, int skipped, int count) {
  if (cover.visible == 0) return {0, 0, 0, 0};
  const auto key = [=](int part) { return int(max(0, min(part * part_keys - skipped, count))); };
  const int first = __builtin_ctz(cover.visible), end = 32 - __builtin_clz(cover.visible);
  const unsigned whole = cover.visible & ~unsigned(cover.partial);
  const int whole_first = whole ? __builtin_ctz(whole) : end,
            parts = whole ? __builtin_ctz(~(whole >> whole_first)) : 0;
  // Bits past the block's last part are set where all of it is.
  const bool open = cover.visible >> 15, whole_open = whole_first + parts == 16;
  return {key(first), open ? count : key(end), key(whole_first), whole_open ? count : key(whole_first + parts)};
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
