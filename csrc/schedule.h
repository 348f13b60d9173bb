// schedule.h: the tasks of a call: how units are dealt out to threads, and which of them are cut into parts.
//
// Knows work, costs and threads, but neither arrays nor kernels. Nothing here changes a result.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace gqa {

// How one sequence is cut.
struct Cut {
  int64_t sequence;  // its number among the works
  Work work;
  int64_t rows_per_unit, blocks_of_rows;
  int64_t splits_per_part, first_part, parts;  // parts are counted by absolute key numbers, as splits are
  int64_t first_unit, first_task;
  double cost;  // estimated microseconds on one thread

  bool in_parts() const { return parts > 1; }
};

// One task: rows [row_begin, row_end) of a KV head over splits [split_begin, split_end).
struct Place {
  const Cut* cut;
  int64_t kv_head, row_begin, row_end, split_begin, split_end;
  int64_t unit;  // its number among all units
  int64_t part;  // its number among the parts of its unit, 0 first
};

class Schedule {
 public:
  // work_of(i): the work of sequence i; one without rows gets no task.
  template <class WorkOf>
  Schedule(int64_t sequences, WorkOf work_of, const Sizes& sizes, int threads) : sizes_(sizes), threads_(threads) {
    cuts_.reserve(size_t(sequences));
    for (int64_t i = 0; i < sequences; i++) {
      Cut cut{};
      cut.sequence = i;
      cut.work = work_of(i);
      if (cut.work.rows > 0) cuts_.push_back(cut);
    }
    deal_out();
  }

  // Threads that are worth starting: at least 1, at most as many as there are tasks.
  int threads() const { return threads_; }
  int64_t tasks() const { return tasks_; }
  int64_t units() const { return units_; }
  const std::vector<Cut>& cuts() const { return cuts_; }

  Place place(int64_t task) const;

 private:
  void deal_out();
  double cost_of(const Work& work) const;
  void cut_keys(Cut& cut) const;

  Sizes sizes_;
  int threads_;
  std::vector<Cut> cuts_;  // where there are several threads, the longest first
  double cost_ = 0;
  int64_t units_ = 0, tasks_ = 0;
};

}  // namespace gqa
