// keys.h: where the keys and values of a block lie. Runs of any store become one table of row addresses, so that
// contiguous caches, a past beside new keys, rings and pages all look the same to the loops.
#pragma once

#include "kernel.h"
#include "shuffle.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// Keys of a block, at multiples of absolute key numbers: with rows in the lanes, a multiple of every tile height; with
// channels in the lanes, as many as a split has, or less where keys are widened into scratch.
constexpr int rows_block = 96, channels_block = 768;
template <class T> constexpr int channels_block_of = sizeof(T) == 8 ? 256 : channels_block;

GQA_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
GQA_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Keys that have a bit of a KeyCover.
constexpr int rows_part = 12;
template <class T> constexpr int channels_part_of = channels_block_of<T> / 12 / 16 * 16;

template <class T> constexpr DType type_of = sizeof(T) == 8 ? DType::f64 : DType::f32;

// Calls f with a value of the element type: of q and out; of k and v.
template <class F> GQA_INLINE void with_float_type(DType type, F f) {
  if (type == DType::f16) f(f16());
  else if (type == DType::bf16) f(bf16());
  else if (type == DType::f64) f(double());
  else f(float());
}
template <class F> GQA_INLINE void with_cache_type(DType type, F f) {
  if (type == DType::i8) f(int8_t());
  else with_float_type(type, f);
}

constexpr int max_keys = channels_block;

// Rows of keys, or of values, and what each is to be multiplied with (i8 only).
struct TokenRows {
  int count;
  DType type;
  const char* const* row;
  const float* scale;
};

struct KeyBlock {
  int count;
  DType k_type, v_type;
  const char *k[max_keys], *v[max_keys];               // the row of each key: head_dim or v_head_dim channels
  float k_scale[max_keys + 1], v_scale[max_keys + 1];  // as in TokenRows

  TokenRows keys() const { return {count, k_type, k, k_scale}; }
  TokenRows values() const { return {count, v_type, v, v_scale}; }
};

// Where the block ends that key `begin` of a sequence is in: before key `end`, or where the next multiple of `size` is.
GQA_INLINE int64_t block_end(const Sequence& sequence, int64_t begin, int64_t end, int size) {
  return min(end, ((sequence.origin + begin) / size + 1) * size - sequence.origin);
}

// The number of the block that key `begin` is in, and how many keys of it come before that.
GQA_INLINE int64_t block_number(const Sequence& sequence, int64_t begin, int size) {
  return (sequence.origin + begin) / size;
}
GQA_INLINE int within_block(const Sequence& sequence, int64_t begin, int size) {
  return int((sequence.origin + begin) % size);
}

// Walks the keys of one sequence and KV head in order.
class KeyWalk {
 public:
  KeyWalk(const Attention& attention, const Sequence& sequence, int64_t kv_head)
      : attention_(attention), sequence_(sequence), head_(kv_head) {}

  // Fills `block` with the keys [begin, end), at most `max_keys`; fewer when the type changes. Returns where it ends.
  int64_t fill(KeyBlock& block, int64_t begin, int64_t end) {
    block.count = 0;
    seek(begin);
    for (; begin < end; run_++) {
      const Run& run = sequence_.runs[run_];
      const Store& store = attention_.stores[run.store];
      if (block.count == 0) {
        block.k_type = store.k_type;
        block.v_type = store.v_type;
      } else if (block.k_type != store.k_type || block.v_type != store.v_type) {
        break;
      }
      const int64_t run_end = run.first + run.count, stop = run_end < end ? run_end : end;
      append(block, store, run, begin - run.first, int(stop - begin));
      begin = stop;
      if (stop < run_end) break;
    }
    return begin;
  }

 private:
  // The run that holds key `begin`: usually the current one, found by bisection otherwise.
  void seek(int64_t begin) {
    if (run_ < sequence_.run_count && holds(run_, begin)) return;
    int64_t low = 0, high = sequence_.run_count - 1;
    while (low < high) {
      const int64_t middle = low + (high - low + 1) / 2;
      if (sequence_.runs[middle].first <= begin) low = middle;
      else high = middle - 1;
    }
    run_ = low;
  }
  bool holds(int64_t run, int64_t key) const {
    const Run& r = sequence_.runs[run];
    return r.first <= key && key < r.first + r.count;
  }

  void append(KeyBlock& block, const Store& store, const Run& run, int64_t skip, int n) const {
    const int64_t token = run.token + skip;
    rows(block.k + block.count, at(store.k, store.k_strides, run.batch, token), store.k_strides.token, n);
    rows(block.v + block.count, at(store.v, store.v_strides, run.batch, token), store.v_strides.token, n);
    if (store.k_type == DType::i8)
      scales(block.k_scale + block.count, at(store.k_scale, store.k_scale_strides, run.batch, token),
             store.k_scale_strides.token, n);
    if (store.v_type == DType::i8)
      scales(block.v_scale + block.count, at(store.v_scale, store.v_scale_strides, run.batch, token),
             store.v_scale_strides.token, n);
    block.count += n;
  }
  const char* at(const char* base, const Strides& strides, int64_t batch, int64_t token) const {
    return base + batch * strides.batch + head_ * strides.head + token * strides.token;
  }
  static void rows(const char** table, const char* row, int64_t stride, int n) {
    for (int j = 0; j < n; j++) table[j] = row + j * stride;
  }
  static void scales(float* table, const char* scale, int64_t stride, int n) {
    for (int j = 0; j < n; j++) table[j] = read<float>(scale + j * stride);
  }

  const Attention& attention_;
  const Sequence& sequence_;
  const int64_t head_;
  int64_t run_ = 0;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
