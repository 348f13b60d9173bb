#include "schedule.h"

#include <algorithm>

#include "threads.h"

namespace gqa {

void Schedule::deal_out() {
  for (Cut& cut : cuts_) cost_ += cut.cost = cost_of(cut.work);
  threads_ = int(std::min<double>(threads_, std::max(1.0, cost_ / worth_a_thread)));
  // A sequence that takes longer than the others must not come last.
  if (threads_ > 1)
    std::stable_sort(cuts_.begin(), cuts_.end(), [](const Cut& x, const Cut& y) { return x.cost > y.cost; });

  const int64_t units_at_least = int64_t(cuts_.size()) * sizes_.kv_heads;
  for (Cut& cut : cuts_) {
    cut.rows_per_unit = rows_per_unit(cut.work, sizes_, units_at_least, threads_);
    cut.blocks_of_rows = ceil_div(cut.work.rows, cut.rows_per_unit);
    cut_keys(cut);
    cut.first_unit = units_;
    units_ += sizes_.kv_heads * cut.blocks_of_rows;
    cut.first_task = tasks_;
    tasks_ += sizes_.kv_heads * cut.blocks_of_rows * cut.parts;
  }
  threads_ = int(std::min<int64_t>(threads_, std::max<int64_t>(1, tasks_)));
}

// Time on one thread, from the rates of an ordinary core: good enough to tell whether threads pay.
double Schedule::cost_of(const Work& work) const {
  constexpr double flops_per_us = 50e3, bytes_per_us = 10e3;
  const double channels = double(sizes_.head_dim + sizes_.v_head_dim);
  return double(sizes_.kv_heads) * work.attended * channels *
         std::max(2 * double(work.rows) / flops_per_us, double(sizes_.element_bytes) / bytes_per_us);
}

// A unit that takes more than its share of the time is cut into parts, aligned subtrees of splits, so that threads can
// share it. Each part has a stored state, which is large where there are many rows: they are cut into fewer.
void Schedule::cut_keys(Cut& cut) const {
  const Work& work = cut.work;
  const int64_t first = work.first_split(), last = work.last_split();
  const double unit = cut.cost / double(sizes_.kv_heads * cut.blocks_of_rows), share = cost_ / threads_;
  double wanted = 1;
  if (threads_ > 1 && unit * 2 > share) wanted = unit / share * (work.in_lanes() ? 4 : 16);
  int level = 0;
  if (wanted <= 1)
    while ((first >> level) != ((last - 1) >> level)) level++;
  else
    while (double(((last - 1) >> level) - (first >> level) + 1) > wanted) level++;
  cut.splits_per_part = int64_t(1) << level;
  cut.first_part = first >> level;
  cut.parts = ((last - 1) >> level) - cut.first_part + 1;
}

Place Schedule::place(int64_t task) const {
  const Cut& cut =
      *(std::upper_bound(cuts_.begin(), cuts_.end(), task, [](int64_t id, const Cut& c) { return id < c.first_task; }) -
        1);
  // Units are counted from the last block of rows, which under a causal mask has the most keys.
  const int64_t unit = (task - cut.first_task) / cut.parts, part = (task - cut.first_task) % cut.parts;
  const int64_t block = cut.blocks_of_rows - 1 - unit / sizes_.kv_heads;
  Place place{};
  place.cut = &cut;
  place.kv_head = unit % sizes_.kv_heads;
  place.row_begin = block * cut.rows_per_unit;
  place.row_end = std::min(place.row_begin + cut.rows_per_unit, cut.work.rows);
  place.split_begin = std::max(cut.work.first_split(), (cut.first_part + part) * cut.splits_per_part);
  place.split_end = std::min(cut.work.last_split(), (cut.first_part + part + 1) * cut.splits_per_part);
  place.unit = cut.first_unit + unit;
  place.part = part;
  return place;
}

}  // namespace gqa
