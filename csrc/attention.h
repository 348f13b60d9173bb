// attention.h: the C++ API. `Attention` describes one call over plain memory; `attend` does it.
//
// Nothing here owns memory, and every struct is plain data: the kernels below the watershed read the same structs.
// All strides are in bytes. Shapes: B batch, Hq/Hkv query/KV heads, S queries, T keys, D/Dv head_dim of q,k/v.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace gqa {

enum class DType : uint8_t { f32, f64, f16, bf16, i8, boolean, i16, i32, i64, u8, u16, u32, u64, none };

constexpr bool is_float(DType type) { return type <= DType::bf16; }
constexpr bool is_integer(DType type) { return type == DType::i8 || (type >= DType::i16 && type <= DType::u64); }
// Always inlined: kernels call it, and objects compiled for different instruction sets would share it otherwise.
__attribute__((always_inline)) constexpr int64_t bytes_of(DType type) {
  switch (type) {
    case DType::f64:
    case DType::i64:
    case DType::u64: return 8;
    case DType::f32:
    case DType::i32:
    case DType::u32: return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
    case DType::u16: return 2;
    default: return 1;
  }
}

// What scores, weights and sums are computed in: a new kind of arithmetic is one more name here, and one more entry in
// the kernels' table (kernels/kernel.h).
enum class Arithmetic : uint8_t { f32, f64 };
constexpr int arithmetics = 2;

struct Strides {
  int64_t batch, head, token;
};

// One storage of keys and values: a tensor (B, Hkv, L, D), a cache, or a pool of pages (pages, Hkv, page_size, D).
// Channels are contiguous. Scales (one float per token and head) are present for i8 only.
struct Store {
  const char *k, *v, *k_scale, *v_scale;
  Strides k_strides, v_strides, k_scale_strides, v_scale_strides;
  DType k_type, v_type;
};

// `count` consecutive tokens of one store; `first` is the index of the run's first token among the sequence's keys.
struct Run {
  int64_t first, count;
  int64_t store, batch, token;  // batch: index on the store's first axis (a batch entry or a page)
};

// States that somebody has already: those over the keys of a subtree of the merge tree (kernels/merge_tree.h), which
// `number`, of any piece of many_rows_split_keys keys within it (plan.h), tells from others.
struct Subtree {
  int64_t number, slot;
};

// One batch entry or packed sequence: its query tokens attend the keys that its runs list in order.
//
// Keys are counted from the first one listed, whose absolute number is `origin`: what a sequence gives depends on the
// absolute numbers, by which keys are cut and merged (plan.h), never on how many of them are listed. A ring lists its
// window alone, a shard its own tokens.
struct Sequence {
  int64_t batch, token;  // where its queries start on the first and the token axis of q, out and lse
  int64_t queries;       // number of queries; `padding` more rows follow and are set to 0 (lse -inf)
  int64_t padding;
  int64_t origin;                // absolute number of key 0
  int64_t offset;                // position of its first query, counted from key 0
  int64_t keys;                  // number of keys that may be read
  int64_t mask_batch, mask_key;  // number of the entry, index on the mask's batch axis; mask column of key 0
  const Run* runs;
  int64_t run_count;

  int64_t whole_queries;    // queries of all of the sequence, of which these are some; 0: these are all
  int64_t whole_keys;       // keys of all of the sequence, the first of which is number 0; 0: none behind these
  int64_t mask_query;       // mask row of its first query
  int64_t slot;             // where its raw states go, if they do
  const Subtree* subtrees;  // of `merge`, by ascending number
  int64_t subtree_count;
};

// Raw states of rows, by slot, query head and query: v_head_dim numbers o, and m and l, side by side in the compute
// type. o is the sum of values times weights, l the sum of the weights 2^(s - m), m the largest base-2 logit; a row
// without keys has l = 0 and m = -infinity. This is the form in which parts of a sequence's keys, aligned to the tree,
// travel between calls and machines, independent of instruction sets: merged in the tree's order, their bits are those
// of one call.
struct StateRows {
  char* data;
  Strides strides;  // batch: slot; token: query
};

// Key j is attended by query i iff position(i) - left <= j <= position(i) + right, j < keys and the mask allows it.
struct Attention {
  const char* q;
  Strides q_strides;
  DType q_type;

  char* out;
  DType out_type;  // q's, or f32 for what half precision would round
  Strides out_strides;
  int64_t out_channel_stride;
  char* lse;  // natural log, in the compute type; may be null
  Strides lse_strides;

  StateRows states;    // if given, rows are not ended in out and lse, but handed over here
  StateRows subtrees;  // where the states are that `merge` takes

  int64_t query_heads, kv_heads, head_dim, v_head_dim;

  const Store* stores;
  const Sequence* sequences;
  int64_t sequence_count;

  const char* mask;      // boolean (true = attend) or a float to add; may be null
  Strides mask_strides;  // token: query
  int64_t mask_key_stride;
  DType mask_type;

  const struct BoundProgram* program;  // changes scores and hides keys (program_plan.h); may be null

  const double* sinks;    // one logit per query head; may be null
  double scale, softcap;  // softcap 0: none
  int64_t left, right;    // `unbounded` for no bound; causal is right = 0
  Arithmetic arithmetic;
  int threads;
};

constexpr int64_t unbounded = int64_t(1) << 62;

// Throws std::bad_alloc before anything is written when the scratch memory cannot be had.
void attend(const Attention& attention);

// The same for rows whose states are there: each sequence merges its subtrees, in the order of the tree, in place of
// keys. `states` may be the memory of `subtrees`. Throws as attend.
void merge(const Attention& attention);

}  // namespace gqa
