#include "covers.h"

#include <algorithm>
#include <utility>

#include "plan.h"

namespace gqa {

CoverFinder::CoverFinder(const Attention& attention, const KernelsOf& kernels)
    : a_(attention), intervals_(attention), few_rows_(kernels.few_rows), many_rows_(kernels.many_rows) {}

// Blocks that the keys of a task can be in.
int64_t CoverFinder::max_blocks(const Task& task) const {
  const Sequence& sequence = *task.sequence;
  const int64_t keys = std::min(sequence.keys, (task.split_end - task.split_begin) * task.split_keys);
  return ceil_div(std::max<int64_t>(keys, 1), grid_of(task).block_keys) + 1;
}

void CoverFinder::Memory::reserve(const CoverFinder& finder, const Task& task) {
  const int64_t tiles = ceil_div(task.row_end - task.row_begin, finder.grid_of(task).rows);
  covers_.resize(std::max(covers_.size(), size_t((tiles + 1) * finder.max_blocks(task))));
  values_.resize(finder.intervals_.values());
}

Box CoverFinder::box_of(const Sequence& sequence, int64_t kv_head, int64_t first_row, int64_t end_row,
                        int64_t first_key, int64_t end_key) const {
  const int64_t group = a_.query_heads / a_.kv_heads, first_query = first_row / group,
                last_query = (end_row - 1) / group;
  const bool one_query = first_query == last_query;
  const int64_t position = sequence.origin + sequence.offset;
  return {kv_head * group + (one_query ? first_row % group : 0),
          kv_head * group + (one_query ? (end_row - 1) % group : group - 1),
          position + first_query,
          position + last_query,
          first_key,
          end_key - 1};
}

void CoverFinder::find(Task& task, Memory& memory) const {
  const Task& found = memory.found_;
  if (found.sequence == task.sequence && found.row_begin == task.row_begin && found.row_end == task.row_end &&
      found.split_begin == task.split_begin && found.split_end == task.split_end &&
      (found.kv_head == task.kv_head || !intervals_.heads_matter())) {
    task.covers = found.covers;
    return;
  }
  const Sequence& sequence = *task.sequence;
  const int64_t group = a_.query_heads / a_.kv_heads;
  const int64_t first_query = task.row_begin / group, last_query = (task.row_end - 1) / group;
  // The keys that some row attends but for the program, by absolute numbers.
  const int64_t begin = std::max({sequence.origin + std::max<int64_t>(0, sequence.offset + first_query - a_.left),
                                  sequence.origin, task.split_begin * task.split_keys});
  const int64_t end = std::min({sequence.origin + std::min(sequence.keys, sequence.offset + last_query + a_.right + 1),
                                task.split_end * task.split_keys});
  const CoverGrid& grid = grid_of(task);
  const int64_t tiles = ceil_div(task.row_end - task.row_begin, grid.rows);
  Covers& covers = task.covers;
  covers.first_block = begin / grid.block_keys;
  covers.blocks = begin < end ? (end - 1) / grid.block_keys + 1 - covers.first_block : 0;
  covers.any = memory.covers_.data();
  KeyCover* const any = memory.covers_.data();
  KeyCover* const at = any + covers.blocks;
  covers.at = at;
  std::fill_n(any, size_t((tiles + 1) * covers.blocks), KeyCover{0, 0});
  memory.found_ = task;
  if (covers.blocks == 0) return;

  const int64_t parts = ceil_div(grid.block_keys, grid.part_keys);
  const Search all{task, grid, parts, covers, at, memory.values_.data()};
  const auto part_of = [&](int64_t key) {
    return key / grid.block_keys * parts + key % grid.block_keys / grid.part_keys;
  };
  search(all, 0, tiles, part_of(begin), part_of(end - 1) + 1);
  for (int64_t tile = 0; tile < tiles; tile++)
    for (int64_t block = 0; block < covers.blocks; block++)
      any[block].visible |= at[tile * covers.blocks + block].visible;
}

// Whether a part is hidden, where its keys as one range do not say so: remainders say little of a range with a multiple
// of the divisor within it. The first key that may be visible ends the search.
bool CoverFinder::all_hidden(const Sequence& sequence, Box box, Range* values) const {
  if (box.first_key >= box.last_key) return false;
  const int64_t middle = box.first_key + (box.last_key - box.first_key) / 2;
  for (const auto& [first, last] : {std::pair(box.first_key, middle), std::pair(middle + 1, box.last_key)}) {
    box.first_key = first, box.last_key = last;
    const Hidden hidden = intervals_.hidden(sequence.mask_batch, box, values);
    if (hidden == Hidden::nothing || (hidden == Hidden::some && !all_hidden(sequence, box, values))) return false;
  }
  return true;
}

void CoverFinder::search(const Search& s, int64_t tile, int64_t end_tile, int64_t part, int64_t end_part) const {
  const Sequence& sequence = *s.task.sequence;
  const int64_t first_row = s.task.row_begin + tile * s.grid.rows,
                end_row = std::min(s.task.row_begin + end_tile * s.grid.rows, s.task.row_end);
  const auto key_of = [&](int64_t p) {
    const int64_t key = p / s.parts_per_block * s.grid.block_keys + p % s.parts_per_block * s.grid.part_keys;
    return std::clamp(key, sequence.origin, sequence.origin + sequence.keys);
  };
  const int64_t first_key = key_of(part), end_key = key_of(end_part);
  const Box box = box_of(sequence, s.task.kv_head, first_row, end_row, first_key, end_key);
  const Hidden hidden = intervals_.hidden(sequence.mask_batch, box, s.values);
  const int64_t tiles = end_tile - tile, parts = end_part - part;
  if (hidden == Hidden::all) return;
  if (hidden == Hidden::some && tiles == 1 && parts == 1 && all_hidden(sequence, box, s.values)) return;
  if (hidden == Hidden::some && (tiles > 1 || parts > 1)) {
    // The longer side, counted in rows of a head and in keys; keys between blocks while there are several.
    const int64_t queries = ceil_div(tiles * s.grid.rows * a_.kv_heads, a_.query_heads);
    if (parts == 1 || (tiles > 1 && queries > end_key - first_key)) {
      const int64_t middle = tile + tiles / 2;
      search(s, tile, middle, part, end_part);
      search(s, middle, end_tile, part, end_part);
    } else {
      int64_t middle = part + parts / 2;
      if (parts > s.parts_per_block) middle = std::max(middle / s.parts_per_block * s.parts_per_block, part + 1);
      search(s, tile, end_tile, part, middle);
      search(s, tile, end_tile, middle, end_part);
    }
    return;
  }
  for (int64_t p = part; p < end_part;) {
    const int64_t block = p / s.parts_per_block, end = std::min(end_part, (block + 1) * s.parts_per_block);
    const int64_t first = p - block * s.parts_per_block, last = end - block * s.parts_per_block;
    const auto bits = uint16_t(((1u << last) - 1) & ~((1u << first) - 1));
    for (int64_t t = tile; t < end_tile; t++) {
      KeyCover& cover = s.at[t * s.covers.blocks + block - s.covers.first_block];
      cover.visible |= bits;
      if (hidden == Hidden::some && intervals_.has_mask()) cover.partial |= bits;
    }
    p = end;
  }
}

double CoverFinder::visible_share(const Sequence& sequence) const {
  const int64_t rows = sequence.queries * (a_.query_heads / a_.kv_heads);
  if (rows == 0 || sequence.keys == 0) return 1;
  std::vector<Range> values(intervals_.values());
  return share(sequence, 0, rows, sequence.origin, sequence.origin + sequence.keys, 8, values.data());
}

double CoverFinder::share(const Sequence& sequence, int64_t first_row, int64_t end_row, int64_t first_key,
                          int64_t end_key, int depth, Range* values) const {
  const Hidden hidden =
      intervals_.hidden(sequence.mask_batch, box_of(sequence, 0, first_row, end_row, first_key, end_key), values);
  if (hidden == Hidden::all) return 0;
  if (hidden == Hidden::nothing || depth == 0) return 1;
  if (depth % 2 == 0 && end_key - first_key > 1) {
    const int64_t middle = first_key + (end_key - first_key) / 2;
    return (share(sequence, first_row, end_row, first_key, middle, depth - 1, values) +
            share(sequence, first_row, end_row, middle, end_key, depth - 1, values)) /
           2;
  }
  if (end_row - first_row < 2) return share(sequence, first_row, end_row, first_key, end_key, depth - 1, values);
  const int64_t middle = first_row + (end_row - first_row) / 2;
  return (share(sequence, first_row, middle, first_key, end_key, depth - 1, values) +
          share(sequence, middle, end_row, first_key, end_key, depth - 1, values)) /
         2;
}

}  // namespace gqa
