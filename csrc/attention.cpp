// attention.cpp: the driver. Cuts a call into tasks, deals them out to threads, merges what was split.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "dispatch.h"
#include "plan.h"
#include "threads.h"

namespace gqa {
namespace {

// Scratch memory of the calling thread, kept between calls.
class Arena {
 public:
  char* reserve(size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(::operator new(bytes, alignment)));
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  static constexpr std::align_val_t alignment{4096};
  struct Delete {
    void operator()(char* p) const { ::operator delete(p, alignment); }
  };
  std::unique_ptr<char, Delete> memory_;
  size_t size_ = 0;
};
thread_local Arena arena;

constexpr size_t aligned(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

// How one sequence is cut. A unit is a block of rows of one KV head; units are counted from the last block of rows,
// which under a causal mask has the most keys, and those of all sequences one after another.
struct Cut {
  const Sequence* sequence;
  Work work;
  int64_t rows_per_task, splits, split_keys;
  int64_t first_unit, first_task;
  size_t partials;  // where its stored states begin
  double cost;      // estimated time in microseconds
};

class Driver {
 public:
  explicit Driver(const Attention& a)
      : a_(a), kernels_(active_kernels()[a.arithmetic]), threads_(forked() ? 1 : a.threads) {
    cut_sequences();
    deal_out();
  }

  void run() {
    const size_t workspace = aligned(kernels_.workspace_bytes(largest_));
    memory_ = arena.reserve(threads_ * workspace + partial_bytes_);
    partials_ = memory_ + threads_ * workspace;
    std::vector<std::atomic<int>> done(store_splits_ ? units_ : 0);
    clear_padding();
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_) if (threads_ > 1)
#endif
    for (int64_t id = 0; id < tasks_; id++) {
#if defined(_OPENMP)
      void* mine = memory_ + size_t(omp_get_thread_num()) * workspace;
#else
      void* mine = memory_;
#endif
      run_task(id, mine, done);
    }
  }

 private:
  void cut_sequences() {
    const int64_t group = a_.query_heads / a_.kv_heads;
    cuts_.reserve(size_t(a_.sequence_count));
    for (int64_t s = 0; s < a_.sequence_count; s++) {
      const Sequence& sequence = a_.sequences[s];
      if (sequence.queries == 0) continue;
      Cut cut{};
      cut.sequence = &sequence;
      cut.work = {
          group * sequence.queries, sequence.keys, a_.head_dim, a_.v_head_dim, a_.arithmetic == Arithmetic::f64 ? 8 : 4,
          kernels_.tile_rows};
      cut.split_keys = split_keys(cut.work);
      cut.splits = std::max<int64_t>(1, ceil_div(sequence.keys, cut.split_keys));
      cut.cost = cost(cut);
      cost_ += cut.cost;
      cuts_.push_back(cut);
    }
    // A sequence that takes longer than the others must not come last.
    if (threads_ > 1)
      std::stable_sort(cuts_.begin(), cuts_.end(), [](const Cut& x, const Cut& y) { return x.cost > y.cost; });
  }

  // Time on one thread, from the rates of an ordinary core: good enough to tell whether threads pay.
  double cost(const Cut& cut) const {
    constexpr double flops_per_us = 50e3, bytes_per_us = 10e3;
    const Sequence& s = *cut.sequence;
    auto attended = [&](int64_t query) {
      const int64_t position = s.offset + query;
      return double(
          std::max<int64_t>(0, std::min(s.keys, position + a_.right + 1) - std::max<int64_t>(0, position - a_.left)));
    };
    const double keys = (attended(0) + attended(s.queries - 1)) / 2, channels = double(a_.head_dim + a_.v_head_dim);
    return double(a_.kv_heads) * keys * channels *
           std::max(2 * double(cut.work.rows) / flops_per_us, double(cut.work.element_bytes) / bytes_per_us);
  }

  void deal_out() {
    constexpr double worth_a_thread = 30;  // microseconds
    threads_ = int(std::min<double>(threads_, std::max(1.0, cost_ / worth_a_thread)));
    const int64_t units_at_least = int64_t(cuts_.size()) * a_.kv_heads;
    for (Cut& cut : cuts_) {
      cut.rows_per_task = rows_per_task(cut.work, units_at_least, threads_);
      cut.first_unit = units_;
      units_ += a_.kv_heads * blocks(cut);
    }
    store_splits_ = threads_ > 1 && units_ < 2 * threads_;
    for (Cut& cut : cuts_) {
      const TaskShape shape = {std::min(cut.rows_per_task, cut.work.rows), a_.head_dim, a_.v_head_dim,
                               rows_in_lanes(cut.work)};
      if (kernels_.workspace_bytes(shape) > kernels_.workspace_bytes(largest_)) largest_ = shape;
      cut.first_task = tasks_;
      tasks_ += a_.kv_heads * blocks(cut) * (store_splits_ ? cut.splits : 1);
      cut.partials = partial_bytes_;
      if (stored(cut)) partial_bytes_ += size_t(a_.kv_heads * blocks(cut) * cut.splits) * partial_bytes_of(cut);
    }
    threads_ = int(std::min<int64_t>(threads_, std::max<int64_t>(1, tasks_)));
  }

  static int64_t blocks(const Cut& cut) { return ceil_div(cut.work.rows, cut.rows_per_task); }
  bool stored(const Cut& cut) const { return store_splits_ && cut.splits > 1; }
  size_t partial_bytes_of(const Cut& cut) const {
    return aligned(
        kernels_.partial_bytes({std::min(cut.rows_per_task, cut.work.rows), a_.head_dim, a_.v_head_dim, false}));
  }

  void run_task(int64_t id, void* workspace, std::vector<std::atomic<int>>& done) {
    const Cut& cut = *(std::upper_bound(cuts_.begin(), cuts_.end(), id,
                                        [](int64_t task, const Cut& c) { return task < c.first_task; }) -
                       1);
    const int64_t splits = store_splits_ ? cut.splits : 1, unit = (id - cut.first_task) / splits,
                  split = (id - cut.first_task) % splits, block = blocks(cut) - 1 - unit / a_.kv_heads;
    Task task{};
    task.sequence = cut.sequence;
    task.kv_head = unit % a_.kv_heads;
    task.row_begin = block * cut.rows_per_task;
    task.row_end = std::min(task.row_begin + cut.rows_per_task, cut.work.rows);
    task.split_begin = 0;
    task.split_end = cut.splits;
    task.split_keys = cut.split_keys;
    task.rows_in_lanes = rows_in_lanes(cut.work);
    if (!stored(cut)) return kernels_.attend(a_, task, workspace);

    Task part = task;
    part.split_begin = split;
    part.split_end = split + 1;
    const size_t bytes = partial_bytes_of(cut);
    char* partials = partials_ + cut.partials + size_t(unit * cut.splits) * bytes;
    part.partial = partials + size_t(split) * bytes;
    kernels_.attend(a_, part, workspace);
    if (done[size_t(cut.first_unit + unit)].fetch_add(1, std::memory_order_acq_rel) + 1 < cut.splits) return;
    task.partial = partials;
    kernels_.merge(a_, task, bytes, workspace);
  }

  // Rows without a query of their own.
  void clear_padding() const {
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
  const KernelsOf& kernels_;
  int threads_;
  std::vector<Cut> cuts_;
  double cost_ = 0;
  int64_t units_ = 0, tasks_ = 0;
  bool store_splits_ = false;
  size_t partial_bytes_ = 0;
  TaskShape largest_{};
  char *memory_ = nullptr, *partials_ = nullptr;
};

}  // namespace

void attend(const Attention& attention) { Driver(attention).run(); }

}  // namespace gqa
