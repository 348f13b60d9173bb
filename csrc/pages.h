// pages.h: sequences whose tokens lie in pages of a fixed size: token p is in slot p % page_size of the page at
// p // page_size. Numbers only.
#pragma once

#include <vector>

#include "tokens.h"

namespace gqa {

// One sequence, how many queries it has, and how many new tokens it takes.
struct PagedSequence {
  const int64_t* pages;  // for new tokens too where those are written
  int64_t page_count, length, queries, count;
};

// The sequences over their pages (store 0) and new tokens (store 1), which are packed as queries are. Rows stand at the
// end. False if the list refuses one.
bool list_pages(const std::vector<PagedSequence>& paged, int64_t page_size, SequenceList& sequences);

// Where new tokens go, of a batch of one.
std::vector<TokenMove> page_moves(const std::vector<PagedSequence>& paged, int64_t page_size);

}  // namespace gqa
