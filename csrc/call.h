// call.h: gathers the arguments of one call from Python into an `Attention`, checks them against each other, runs it.
//
// The Python layer explains what is wrong with a shape; the checks here make sure that no other caller of the extension
// can reach memory that is not its own.
#pragma once

#include <vector>

#include "arrays.h"

namespace gqa {

class Call {
 public:
  // q: four axes, in `layout`, which is also that of the stores and the output.
  Call(py::handle q, Layout layout);

  // k and v: four axes each; arrays of floats, or objects with int8 `data` and its `scale`, as gqa.Quantized. The first
  // store fixes kv_heads, head_dim and v_head_dim. Returns its number of tokens.
  int64_t add_store(py::handle k, py::handle v);

  // MemoryError if there are too many sequences to list.
  void reserve(int64_t sequences);

  // ValueError unless the first axis of every store is `batch`.
  void require_batch(int64_t batch) const;

  // Sequences attend the runs added after the sequence before; the runs' `first` is filled in here.
  void add_run(int64_t store, int64_t batch, int64_t token, int64_t count);
  void end_sequence(const Sequence& sequence);

  // mask: broadcast to (batch, query heads, queries, keys) by NumPy's rules, whatever the layout.
  void set_mask(py::handle mask, int64_t batch, int64_t queries, int64_t keys);
  void set_positions(py::handle causal, py::handle window);
  void set_scores(py::handle scale, py::handle softcap, py::handle sinks);

  // The output, or (output, lse).
  py::object run(py::handle out, py::handle return_lse, py::handle num_threads);

  int64_t batch() const { return q_.shape(0); }
  int64_t queries() const { return q_.shape(layout_.token); }

 private:
  struct StoreShape {
    int64_t batch, tokens;
  };
  struct Tensor;
  Tensor tensor(py::handle object, const char* name);
  void check_inputs_against(const py::array& out) const;

  const Layout layout_;
  const py::array q_;
  Attention a_{};
  std::vector<Store> stores_;
  std::vector<StoreShape> store_shapes_;
  std::vector<py::array> inputs_;
  std::vector<Run> runs_;
  std::vector<Sequence> sequences_;
  std::vector<double> sinks_;
  int64_t run_begin_ = 0, run_keys_ = 0;
};

}  // namespace gqa
