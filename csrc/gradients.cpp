// gradients.cpp: the driver of the backward pass. Deals out its tasks, and keeps the order in which they add to the
// same memory.
#include "gradients.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "arena.h"
#include "covers.h"
#include "dispatch.h"
#include "parallel.h"
#include "plan.h"
#include "threads.h"
#include "turns.h"

namespace gqa {
namespace {

struct Interval {
  int64_t begin, end;
};

// The keys that some of the rows [begin, end) of a KV head attend.
Interval attended_by(const Attention& a, const Sequence& s, int64_t begin, int64_t end) {
  const int64_t group = a.query_heads / a.kv_heads;
  return {std::max<int64_t>(0, s.offset + begin / group - a.left),
          std::max<int64_t>(0, std::min(s.keys, s.offset + (end - 1) / group + a.right + 1))};
}

// Rows [row_begin, row_end) of a sequence and KV head. Chunks of a unit are counted from its last.
struct Chunk {
  int64_t sequence, kv_head, order;
  int64_t row_begin, row_end;
};

class Driver {
 public:
  explicit Driver(const Gradients& g)
      : g_(g),
        a_(*g.attention),
        kernels_(active_kernels()[a_.arithmetic]),
        element_bytes_(a_.arithmetic == Arithmetic::f64 ? 8 : 4),
        group_(a_.kv_heads > 0 ? a_.query_heads / a_.kv_heads : 0),
        chunk_rows_(rows_per_chunk({a_.kv_heads, a_.head_dim, a_.v_head_dim, element_bytes_, kernels_.tile_rows})) {
    for (int64_t s = 0; s < a_.sequence_count; s++) {
      max_chunks_ = std::max(max_chunks_, chunks_of(s));
      blocks_ = std::max(blocks_, ceil_div(a_.sequences[s].keys, gradient_block));
    }
    list_chunks();
    find_turns();
  }

  void run() {
    int64_t max_rows = 0;
    for (const Chunk& chunk : chunks_) max_rows = std::max(max_rows, chunk.row_end - chunk.row_begin);
    const int threads = int(std::min<int64_t>(threads_worth(cost(), a_.threads), std::max<size_t>(1, chunks_.size())));
    const size_t workspace = whole_pages(kernels_.gradient_bytes(
        {max_rows, a_.head_dim, a_.v_head_dim, 1, true, a_.program ? a_.program->plan : nullptr}));
    reserve_covers(threads);
    char* const memory = arena.reserve(size_t(threads) * workspace);
    reserve_sums();
    if (g_.dsinks) dsinks_.assign(chunks_.size() * size_t(group_), 0);
    clear();
    // Chunks are begun in their order, and one waits only for others before it: the first that is not done never waits,
    // however few threads there are.
    parallel_for(int64_t(chunks_.size()), threads, [&](int64_t i, int thread) {
      run_chunk(size_t(i), size_t(thread), memory + size_t(thread) * workspace);
    });
    if (g_.dsinks) add_sinks();
  }

 private:
  int64_t rows_of(int64_t sequence) const { return a_.sequences[sequence].queries * group_; }
  int64_t chunks_of(int64_t sequence) const { return ceil_div(rows_of(sequence), chunk_rows_); }

  // All sequences' last chunks first: under a causal mask those take the longest, and chunks of one unit, which wait
  // for each other, are far apart.
  void list_chunks() {
    for (int64_t order = 0; order < max_chunks_; order++)
      for (int64_t s = 0; s < a_.sequence_count; s++) {
        const int64_t begin = (chunks_of(s) - 1 - order) * chunk_rows_;
        if (begin < 0) continue;
        for (int64_t h = 0; h < a_.kv_heads; h++)
          chunks_.push_back({s, h, order, begin, std::min(begin + chunk_rows_, rows_of(s))});
      }
  }

  // Which chunks add to each block of keys: consecutive ones, since both ends of what rows attend grow with the row.
  void find_turns() {
    first_order_.assign(size_t(a_.sequence_count * blocks_), -1);
    last_order_.assign(first_order_.size(), -1);
    for (const Chunk& chunk : chunks_) {
      if (chunk.kv_head != 0) continue;
      const Interval keys = attended_by(a_, a_.sequences[chunk.sequence], chunk.row_begin, chunk.row_end);
      if (keys.begin >= keys.end) continue;
      for (int64_t block = keys.begin / gradient_block; block < ceil_div(keys.end, gradient_block); block++) {
        const size_t i = size_t(chunk.sequence * blocks_ + block);
        if (first_order_[i] < 0) first_order_[i] = int32_t(chunk.order);
        last_order_[i] = int32_t(chunk.order);
      }
    }
    key_turns_ = Turns(size_t(a_.sequence_count * a_.kv_heads * blocks_));
    for (int64_t s = 0; s < a_.sequence_count && blocks_ > 0; s++)
      for (int64_t h = 0; h < a_.kv_heads; h++)
        for (int64_t block = 0; block < blocks_; block++)
          key_turns_.start(size_t((s * a_.kv_heads + h) * blocks_ + block), first_order_[size_t(s * blocks_ + block)]);
    if (g_.dmask) find_mask_turns();
  }

  // Chunks that share elements of dmask are of one class, in which each has a turn at every block.
  void find_mask_turns() {
    const bool batch_shared = g_.dmask_strides.batch == 0 && a_.sequence_count > 1,
               heads_shared = g_.dmask_strides.head == 0 && a_.query_heads > 1,
               queries_shared = g_.dmask_strides.token == 0;
    if (!batch_shared && !heads_shared && !queries_shared) return;
    mask_classes_.reserve(chunks_.size());
    mask_ranks_.reserve(chunks_.size());
    std::vector<int32_t> members(size_t(a_.sequence_count * a_.kv_heads), 0);
    for (const Chunk& chunk : chunks_) {
      const int64_t c = (batch_shared ? 0 : chunk.sequence) * a_.kv_heads + (heads_shared ? 0 : chunk.kv_head);
      mask_classes_.push_back(c);
      mask_ranks_.push_back(members[size_t(c)]++);
    }
    mask_turns_ = Turns(members.size() * size_t(blocks_ + 1));
  }

  double cost() const {  // microseconds on one thread
    constexpr double flops_per_us = 50e3;
    double pairs = 0;  // of a row and a key
    for (const Chunk& chunk : chunks_) {
      const Sequence& s = a_.sequences[chunk.sequence];
      const Interval low = attended_by(a_, s, chunk.row_begin, chunk.row_begin + 1),
                     high = attended_by(a_, s, chunk.row_end - 1, chunk.row_end);
      const double keys =
          double(std::max<int64_t>(0, low.end - low.begin) + std::max<int64_t>(0, high.end - high.begin));
      pairs += double(chunk.row_end - chunk.row_begin) * keys / 2;
    }
    return pairs * double(6 * a_.head_dim + 4 * a_.v_head_dim) / flops_per_us;
  }

  // Several chunks add up in the compute type, where dk and dv are not of that type in memory of their own.
  void reserve_sums() {
    const DType type = a_.arithmetic == Arithmetic::f64 ? DType::f64 : DType::f32;
    dk_sums_ = g_.dk, dv_sums_ = g_.dv;
    if (max_chunks_ <= 1) return;
    const auto reserve = [&](RowTensor& sums, int64_t channels, std::unique_ptr<char[]>& memory) {
      if (sums.type == type) return;
      const int64_t row = channels * element_bytes_, head = g_.key_tokens * row, batch = a_.kv_heads * head;
      memory.reset(new char[size_t(g_.key_batches * batch)]);
      sums = {memory.get(), {batch, head, row}, type};
    };
    reserve(dk_sums_, a_.head_dim, dk_memory_);
    reserve(dv_sums_, a_.v_head_dim, dv_memory_);
  }

  // Those in blocks that some task adds to.
  int64_t attended_tokens() const {
    int64_t tokens = 0;
    for (int64_t s = 0; s < a_.sequence_count; s++)
      for (int64_t block = 0; block < blocks_; block++)
        if (first_order_[size_t(s * blocks_ + block)] >= 0)
          tokens += std::min(gradient_block, a_.sequences[s].keys - block * gradient_block);
    return tokens;
  }

  // What no task writes: keys that nothing attends, and rows without a query of their own.
  void clear() const {
    for (int64_t s = 0; s < a_.sequence_count; s++) {
      const Sequence& q = a_.sequences[s];
      for (int64_t i = q.queries; i < q.queries + q.padding; i++)
        clear_row(g_.dq, a_.query_heads, q.batch, q.token + i, a_.head_dim);
    }
    if (attended_tokens() < g_.key_batches * g_.key_tokens)
      for (int64_t b = 0; b < g_.key_batches; b++)
        for (int64_t i = 0; i < g_.key_tokens; i++) {
          clear_row(g_.dk, a_.kv_heads, b, i, a_.head_dim);
          clear_row(g_.dv, a_.kv_heads, b, i, a_.v_head_dim);
        }
    if (g_.dmask) std::memset(g_.dmask, 0, size_t(g_.dmask_elements * element_bytes_));
  }
  static void clear_row(const RowTensor& x, int64_t heads, int64_t batch, int64_t token, int64_t channels) {
    for (int64_t h = 0; h < heads; h++)
      std::memset(x.data + batch * x.strides.batch + h * x.strides.head + token * x.strides.token, 0,
                  size_t(channels * bytes_of(x.type)));
  }

  // What the kernel calls back with.
  struct TurnsOfChunk {
    Driver* driver;
    size_t keys_slot, mask_slot;  // of block 0
    int64_t first_slot;           // of block 0, among those of all units of the sequence
    int32_t order, mask_rank;
  };
  static Turn await_keys(void* turns, int64_t block) {
    const TurnsOfChunk& t = *static_cast<TurnsOfChunk*>(turns);
    t.driver->key_turns_.await(t.keys_slot + size_t(block), t.order);
    const size_t i = size_t(t.first_slot + block);
    return {t.driver->first_order_[i] == t.order, t.driver->last_order_[i] == t.order};
  }
  static void pass_keys(void* turns, int64_t block) {
    const TurnsOfChunk& t = *static_cast<TurnsOfChunk*>(turns);
    t.driver->key_turns_.pass(t.keys_slot + size_t(block), t.order);
  }
  static void await_mask(void* turns, int64_t block) {
    const TurnsOfChunk& t = *static_cast<TurnsOfChunk*>(turns);
    t.driver->mask_turns_.await(t.mask_slot + size_t(block), t.mask_rank);
  }
  static void pass_mask(void* turns, int64_t block) {
    const TurnsOfChunk& t = *static_cast<TurnsOfChunk*>(turns);
    t.driver->mask_turns_.pass(t.mask_slot + size_t(block), t.mask_rank);
  }

  // As the forward pass finds them: what is hidden from a chunk, as from a task of all its keys.
  Task task_of(const Chunk& chunk) const {
    Task task{};
    task.sequence = a_.sequences + chunk.sequence;
    task.kv_head = chunk.kv_head;
    task.row_begin = chunk.row_begin, task.row_end = chunk.row_end;
    task.split_end = 1, task.split_keys = std::max<int64_t>(1, task.sequence->keys);
    task.rows_in_lanes = true;
    return task;
  }
  void reserve_covers(int threads) {
    if (!a_.program) return;
    auto finder = std::make_unique<CoverFinder>(a_, kernels_);
    if (!finder->worthwhile()) return;
    covers_ = std::move(finder);
    cover_memory_.resize(size_t(threads));
    for (const Chunk& chunk : chunks_)
      for (CoverFinder::Memory& memory : cover_memory_) memory.reserve(*covers_, task_of(chunk));
  }
  Covers covers_of(const Chunk& chunk, size_t thread) {
    Task task = task_of(chunk);
    if (a_.program) task.covers.otherwise = a_.program->plan->has[output_mask] ? all_partial : all_visible;
    if (covers_) covers_->find(task, cover_memory_[thread]);
    return task.covers;
  }

  void run_chunk(size_t i, size_t thread, void* workspace) {
    const Chunk& chunk = chunks_[i];
    TurnsOfChunk turns{this,
                       size_t((chunk.sequence * a_.kv_heads + chunk.kv_head) * blocks_),
                       0,
                       chunk.sequence * blocks_,
                       int32_t(chunk.order),
                       0};
    GradientTask task{};
    task.sequence = a_.sequences + chunk.sequence;
    task.kv_head = chunk.kv_head;
    task.row_begin = chunk.row_begin, task.row_end = chunk.row_end;
    task.covers = covers_of(chunk, thread);
    task.dk_sums = dk_sums_, task.dv_sums = dv_sums_;
    task.dsinks = g_.dsinks ? dsinks_.data() + i * size_t(group_) : nullptr;
    task.blocks = blocks_;
    task.turns = &turns;
    task.await_keys = await_keys, task.pass_keys = pass_keys;
    if (!mask_classes_.empty()) {
      turns.mask_slot = size_t(mask_classes_[i] * (blocks_ + 1)), turns.mask_rank = mask_ranks_[i];
      task.await_mask = await_mask, task.pass_mask = pass_mask;
    }
    kernels_.differentiate(g_, task, workspace);
  }

  void add_sinks() const {
    std::fill_n(g_.dsinks, a_.query_heads, 0.0);
    for (size_t i = 0; i < chunks_.size(); i++)
      for (int64_t h = 0; h < group_; h++)
        g_.dsinks[chunks_[i].kv_head * group_ + h] += dsinks_[i * size_t(group_) + size_t(h)];
  }

  const Gradients& g_;
  const Attention& a_;
  const KernelsOf& kernels_;
  const int64_t element_bytes_, group_, chunk_rows_;
  int64_t max_chunks_ = 0, blocks_ = 0;  // of a sequence: those of a KV head's rows, and of keys
  std::vector<Chunk> chunks_;
  std::vector<int32_t> first_order_, last_order_;  // [sequence][block]: of the chunks that add to it; -1: none
  Turns key_turns_;                                // [sequence][KV head][block]
  std::vector<int64_t> mask_classes_;              // [chunk]; empty: no two chunks share elements of dmask
  std::vector<int32_t> mask_ranks_;                // [chunk]: its place in its class
  Turns mask_turns_;                               // [class][block]
  std::unique_ptr<CoverFinder> covers_;            // of a program that hides keys
  std::vector<CoverFinder::Memory> cover_memory_;  // of each thread
  RowTensor dk_sums_{}, dv_sums_{};
  std::unique_ptr<char[]> dk_memory_, dv_memory_;
  std::vector<double> dsinks_;  // [chunk][head of the group]
};

}  // namespace

void differentiate(const Gradients& gradients) { Driver(gradients).run(); }

}  // namespace gqa
