#include "pages.h"

#include <algorithm>

namespace gqa {

bool list_pages(const std::vector<PagedSequence>& paged, int64_t page_size, SequenceList& sequences) {
  int64_t runs = 0, query = 0, token = 0;
  for (const PagedSequence& p : paged) runs += p.page_count + 1;
  sequences.reserve(int64_t(paged.size()), runs);
  for (const PagedSequence& p : paged) {
    for (int64_t first = 0, i = 0; first < p.length; first += page_size, i++)
      if (!sequences.add_run(0, p.pages[i], 0, std::min(page_size, p.length - first))) return false;
    if (!sequences.add_run(1, 0, token, p.count)) return false;
    Sequence s{};
    s.token = query;
    s.queries = p.queries;
    s.keys = p.length + p.count;
    s.offset = s.keys - s.queries;
    s.mask_batch = &p - paged.data();
    if (!sequences.add_sequence(s)) return false;
    query += p.queries;
    token += p.count;
  }
  return true;
}

std::vector<TokenMove> page_moves(const std::vector<PagedSequence>& paged, int64_t page_size) {
  std::vector<TokenMove> moves;
  int64_t token = 0;
  for (const PagedSequence& p : paged)
    each_span(p.length, p.length + p.count, page_size, [&](int64_t at, int64_t n) {
      moves.push_back({p.pages[at / page_size], at % page_size, 0, token, n});
      token += n;
    });
  return moves;
}

}  // namespace gqa
