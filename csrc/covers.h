// covers.h: which keys a score program hides from the rows of a task, found before the task runs: kernels read no block
// of keys that is hidden from all its rows, and ask the program's mask nothing where it hides nothing.
//
// Large ranges of rows and keys come first, and are halved until they are wholly hidden, wholly visible, or a tile of
// rows and a part of a block of keys: so that what this takes grows with the edges of what is visible. What is found
// for a tile and a part follows from those alone, not from the task.
#pragma once

#include "intervals.h"
#include "kernels/kernel.h"

namespace gqa {

class CoverFinder {
 public:
  CoverFinder(const Attention& attention, const KernelsOf& kernels);

  bool worthwhile() const { return intervals_.worthwhile(); }

  // The share of a sequence's rows and keys that is visible, about.
  double visible_share(const Sequence& sequence) const;

  // One thread's. Tasks of one sequence that have the same rows and keys for other heads share what was found, unless
  // the program asks for the head.
  class Memory {
   public:
    // For tasks of so many rows and splits, if they are larger than those before. Throws std::bad_alloc.
    void reserve(const CoverFinder& finder, const Task& task);

   private:
    friend class CoverFinder;
    std::vector<KeyCover> covers_;
    std::vector<Range> values_;
    Task found_{};  // what covers_ are of
  };

  // Sets task.covers, which is good until the memory is used again.
  void find(Task& task, Memory& memory) const;

 private:
  // Of one search: tiles and parts of a task, parts counted by absolute key numbers.
  struct Search {
    const Task& task;
    CoverGrid grid;
    int64_t parts_per_block;
    Covers covers;
    KeyCover* at;
    Range* values;
  };

  const CoverGrid& grid_of(const Task& task) const { return task.rows_in_lanes ? many_rows_ : few_rows_; }
  int64_t max_blocks(const Task& task) const;
  Box box_of(const Sequence& sequence, int64_t kv_head, int64_t first_row, int64_t end_row, int64_t first_key,
             int64_t end_key) const;
  bool all_hidden(const Sequence& sequence, Box box, Range* values) const;
  void search(const Search& search, int64_t tile, int64_t end_tile, int64_t part, int64_t end_part) const;
  double share(const Sequence& sequence, int64_t first_row, int64_t end_row, int64_t first_key, int64_t end_key,
               int depth, Range* values) const;

  const Attention& a_;
  const Intervals intervals_;
  const CoverGrid few_rows_, many_rows_;
};

}  // namespace gqa
