// products/products.h: the arithmetic of the two products with channels in the lanes, chosen for each block of keys.
//
// A product policy is one way to compute them. It has Buffers, its scratch memory, and
//   prepare_block(block): what is done once with a block, whatever rows come
//   scores<R>(r, block, from, keys, rows, s): s[step][stream][row] = k . q for R rows from r on, scales included
//   accumulate<R>(block, from, keys, rows, select, p, o, stride): o += p . v; `select`: leave out weights of 0; p may
//     be changed
// or only one of the products, and tells for which keys it serves. `keys` are dealt to streams (streams.h), `rows` are
// the rows of K or V in their order, `from` is the number of the first one in the block. A new arithmetic is one more
// file and one more line here.
#pragma once

#include "../ranges.h"
#include "integers.h"
#include "queries.h"
#include "widening.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// In double everything is widened.
template <class T> class Products {
 public:
  struct Buffers {
    Buffers(const TaskShape& shape, Scratch& scratch)
        : q(shape, scratch), widening(shape, channels_block_of<T>, scratch) {}

    const QueryRows<T> q;
    const typename Widening<T>::Buffers widening;
  };

  Products(const Attention& a, const Task&, const Buffers& buffers) : widening_(a, buffers.q, buffers.widening) {}

  void prepare_block(KeyBlock& block, Interval) { widening_.prepare_block(block); }

  template <int R, class... Arguments> void scores(const Arguments&... arguments) const {
    widening_.template scores<R>(arguments...);
  }
  template <int R, class... Arguments>
  void accumulate(const KeyBlock& block, int, const Arguments&... arguments) const {
    widening_.template accumulate<R>(block, arguments...);
  }

 private:
  const Widening<T> widening_;
};

// In float keys of int8 are multiplied as integers where there are many and it is precise enough, values where the
// processor has instructions for it.
template <> class Products<float> {
 public:
  struct Buffers {
    Buffers(const TaskShape& shape, Scratch& scratch)
        : q(shape, scratch), widening(shape, channels_block, scratch), integers(q.rows, shape, scratch) {}

    const QueryRows<float> q;
    const Widening<float>::Buffers widening;
    const Integers::Buffers integers;
  };

  Products(const Attention& a, const Task& task, const Buffers& buffers)
      : widening_(a, buffers.q, buffers.widening), integers_(a, task.integers, buffers.q, buffers.integers) {}

  // attended: by the rows of the task.
  void prepare_block(KeyBlock& block, Interval attended) {
    use_integers_ = block.k_type == DType::i8 && integers_.worth_it(attended.end - attended.begin);
    if (use_integers_) integers_.prepare_queries();
  }

  template <int R>
  void scores(int r, const KeyBlock& block, int from, const Streams<streams<float, R>>& keys,
              const StreamRows<streams<float, R>>& rows, float* s) const {
    if (use_integers_ && integers_.precise<R>(r, block.k_scale + from, keys.total()))
      integers_.scores<R>(r, block, from, keys, rows, s);
    else widening_.scores<R>(r, block, from, keys, rows, s);
  }
  template <int R>
  void accumulate(const KeyBlock& block, int from, const Streams<streams<float, R>>& keys,
                  const StreamRows<streams<float, R>>& rows, bool select, float* p, float* o, int64_t stride) const {
    if (block.v_type == DType::i8) {
      multiply_scales<float, R, true>(block.v_scale + from, keys, p);
      if (!select && integers_.accumulate<R>(keys, rows, p, o, stride)) return;
    }
    widening_.accumulate<R>(block, keys, rows, select, p, o, stride);
  }

 private:
  const Widening<float> widening_;
  Integers integers_;
  bool use_integers_ = false;
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
