// attention.cpp: the driver. Finds memory for the tasks of a call, runs them, merges what was cut into parts.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "arena.h"
#include "covers.h"
#include "dispatch.h"
#include "parallel.h"
#include "schedule.h"
#include "threads.h"

namespace gqa {
namespace {

// The attended keys of a sequence: what is known about them before looking at any.
Work work_of(const Attention& a, const Sequence& s) {
  auto begin = [&](int64_t query) { return std::max<int64_t>(0, s.offset + query - a.left); };
  auto end = [&](int64_t query) { return std::max<int64_t>(0, std::min(s.keys, s.offset + query + a.right + 1)); };
  auto attended = [&](int64_t query) { return double(std::max<int64_t>(0, end(query) - begin(query))); };
  Work work{};
  const int64_t group = a.query_heads / a.kv_heads;
  work.rows = group * s.queries;
  work.whole_rows = group * s.whole_queries;
  if (work.rows == 0) return work;
  work.last_key = s.origin + end(s.queries - 1);
  work.first_key = std::min(s.origin + begin(0), work.last_key);
  work.attended = (attended(0) + attended(s.queries - 1)) / 2;
  return work;
}

// The same for rows whose states are there: each subtree is as much work as a few keys, and none is cut off.
Work merging_of(const Attention& a, const Sequence& s) {
  const int64_t group = a.query_heads / a.kv_heads;
  return {group * s.queries, 0, 0, 4 * double(s.subtree_count), group * s.whole_queries};
}

// The numbers of a sequence's subtrees, of which some between first and last may be missing.
struct Span {
  int64_t first, last;
  int64_t count() const { return last - first; }
};
Span span_of(const Sequence& s) {
  if (s.subtree_count == 0) return {0, 1};
  return {s.subtrees[0].number, s.subtrees[s.subtree_count - 1].number + 1};
}

class Driver {
 public:
  // merging: tasks merge subtrees rather than attend keys.
  Driver(const Attention& a, const Kernels& active, bool merging)
      : a_(a),
        merging_(merging),
        integers_(active.integers),
        kernels_(active[a.arithmetic]),
        covers_(cover_finder()),
        schedule_(
            a.sequence_count,
            [&](int64_t i) { return merging ? merging_of(a, a.sequences[i]) : visible_work_of(a.sequences[i]); },
            {a.kv_heads, a.head_dim, a.v_head_dim, a.arithmetic == Arithmetic::f64 ? 8 : 4, kernels_.tile_rows},
            forked() ? 1 : a.threads) {
    for (const Cut& cut : schedule_.cuts()) {
      const TaskShape shape = shape_of(cut);
      workspace_ = std::max(workspace_, whole_pages(kernels_.workspace_bytes(shape)));
      if (!cut.in_parts()) continue;
      partials_.resize(schedule_.cuts().size());
      partials_[number_of(cut)] = partial_bytes_;
      partial_bytes_ +=
          size_t(a_.kv_heads * cut.blocks_of_rows * cut.parts) * whole_pages(kernels_.partial_bytes(shape));
    }
  }

  void run() {
    const int threads = schedule_.threads();
    reserve_covers();
    memory_ = arena.reserve(size_t(threads) * workspace_ + partial_bytes_);
    std::vector<std::atomic<int64_t>> done(partial_bytes_ > 0 ? size_t(schedule_.units()) : 0);
    clear_padding();
    parallel_for(schedule_.tasks(), threads,
                 [&](int64_t id, int thread) { run_task(schedule_.place(id), size_t(thread), done); });
  }

 private:
  size_t number_of(const Cut& cut) const { return size_t(&cut - schedule_.cuts().data()); }
  TaskShape shape_of(const Cut& cut) const {
    int64_t splits = std::min(cut.splits_per_part, cut.work.last_split() - cut.work.first_split());
    if (merging_) splits = span_of(a_.sequences[cut.sequence]).count();
    return {std::min(cut.rows_per_unit, cut.work.rows), a_.head_dim, a_.v_head_dim, splits, cut.work.in_lanes(),
            a_.program ? a_.program->plan : nullptr,    integers_};
  }

  // Of a program that hides keys; null: none does.
  std::unique_ptr<CoverFinder> cover_finder() const {
    if (!a_.program || merging_) return nullptr;
    auto finder = std::make_unique<CoverFinder>(a_, kernels_);
    return finder->worthwhile() ? std::move(finder) : nullptr;
  }
  Work visible_work_of(const Sequence& s) const {
    Work work = work_of(a_, s);
    if (covers_ && a_.threads > 1) work.attended *= covers_->visible_share(s);
    return work;
  }
  void reserve_covers() {
    if (!covers_) return;
    cover_memory_.resize(size_t(schedule_.threads()));
    for (const Cut& cut : schedule_.cuts()) {
      Task task = task_of(cut);
      task.row_end = std::min(cut.rows_per_unit, cut.work.rows);
      task.split_end = std::min(cut.splits_per_part, cut.work.last_split() - cut.work.first_split());
      for (CoverFinder::Memory& memory : cover_memory_) memory.reserve(*covers_, task);
    }
  }

  // Without rows and splits.
  Task task_of(const Cut& cut) const {
    Task task{};
    task.sequence = a_.sequences + cut.sequence;
    task.split_keys = cut.work.split_keys();
    task.rows_in_lanes = cut.work.in_lanes();
    task.integers = integers_;
    task.given_up = interrupted;
    return task;
  }

  void run_task(const Place& place, size_t thread, std::vector<std::atomic<int64_t>>& done) {
    void* const workspace = memory_ + thread * workspace_;
    const Cut& cut = *place.cut;
    Task task = task_of(cut);
    task.kv_head = place.kv_head;
    task.row_begin = place.row_begin;
    task.row_end = place.row_end;
    task.split_begin = place.split_begin;
    task.split_end = place.split_end;
    if (merging_) {
      const Span subtrees = span_of(*task.sequence);
      task.split_begin = subtrees.first, task.split_end = subtrees.last;
      return kernels_.merge_subtrees(a_, task, workspace);
    }
    if (a_.program) task.covers.otherwise = a_.program->plan->has[output_mask] ? all_partial : all_visible;
    if (covers_) covers_->find(task, cover_memory_[thread]);
    if (!cut.in_parts()) return kernels_.attend(a_, task, workspace);

    const size_t bytes = whole_pages(kernels_.partial_bytes(shape_of(cut)));
    char* const partials = memory_ + size_t(schedule_.threads()) * workspace_ + partials_[number_of(cut)] +
                           size_t((place.unit - cut.first_unit) * cut.parts) * bytes;
    task.partial = partials + size_t(place.part) * bytes;
    kernels_.attend(a_, task, workspace);
    // Whoever ends the unit's last part merges them all. The counter's release makes the part just stored visible to
    // that thread, whose acquire comes after every other part's release.
    if (done[size_t(place.unit)].fetch_add(1, std::memory_order_acq_rel) + 1 < cut.parts || interrupted()) return;
    task.partial = partials;
    task.split_begin = cut.first_part;
    kernels_.merge(a_, task, cut.parts, bytes, workspace);
  }

  // Rows without a query of their own. Rows that are handed over have none.
  void clear_padding() const {
    if (a_.states.data) return;
    const size_t bytes = size_t(bytes_of(a_.out_type));
    for (int64_t s = 0; s < a_.sequence_count; s++) {
      const Sequence& q = a_.sequences[s];
      for (int64_t i = q.queries; i < q.queries + q.padding; i++)
        for (int64_t h = 0; h < a_.query_heads; h++) {
          char* out =
              a_.out + q.batch * a_.out_strides.batch + h * a_.out_strides.head + (q.token + i) * a_.out_strides.token;
          for (int64_t c = 0; c < a_.v_head_dim; c++) std::memset(out + c * a_.out_channel_stride, 0, bytes);
          if (!a_.lse) continue;
          char* lse =
              a_.lse + q.batch * a_.lse_strides.batch + h * a_.lse_strides.head + (q.token + i) * a_.lse_strides.token;
          const double minus_infinity = -std::numeric_limits<double>::infinity();
          const float minus_infinity_f32 = -std::numeric_limits<float>::infinity();
          if (a_.arithmetic == Arithmetic::f64) std::memcpy(lse, &minus_infinity, sizeof minus_infinity);
          else std::memcpy(lse, &minus_infinity_f32, sizeof minus_infinity_f32);
        }
    }
  }

  const Attention& a_;
  const bool merging_;
  const IntegerProducts* const integers_;
  const KernelsOf& kernels_;
  const std::unique_ptr<CoverFinder> covers_;
  const Schedule schedule_;
  std::vector<CoverFinder::Memory> cover_memory_;  // of each thread
  size_t workspace_ = 0, partial_bytes_ = 0;
  std::vector<size_t> partials_;  // of each cut: where its stored states begin
  char* memory_ = nullptr;        // a workspace for each thread, then the stored states
};

}  // namespace

void attend(const Attention& attention) { Driver(attention, active_kernels(), false).run(); }
void merge(const Attention& attention) { Driver(attention, active_kernels(), true).run(); }

}  // namespace gqa
