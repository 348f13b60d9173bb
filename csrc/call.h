// call.h: gathers what one call is about, checks it against each other, and does it.
//
// This is where the rules are: what fits together, and which memory may be reached. It knows nothing of Python: every
// check compares views and numbers, so that whoever has those (NumPy, DLPack, another runtime's buffers, or shapes
// without data) is held to the same rules. It copies no view: what it is given must outlive it. Nothing is thrown but
// std::bad_alloc, and nothing written before all is well.
#pragma once

#include <memory>
#include <vector>

#include "options.h"
#include "sequence_list.h"

namespace gqa {

constexpr int64_t max_channels = 1 << 16;  // of head_dim

// Keys or values, under the name that the caller has for them.
struct Tensor {
  const char* name = "";
  TensorView data;
  TensorView scale;  // of int8: a number for each row
};

// One whole number for all batch entries, or one for each.
struct Integers {
  Shape shape{-1, {}};              // no axes: one number; -1: not given
  const int64_t* values = nullptr;  // null where only the shape is known

  bool given() const { return shape.axes >= 0; }
  int64_t at(int64_t b) const { return values[shape.axes == 0 ? 0 : b]; }
};

class Call {
 public:
  explicit Call(const Options& options) : options_(options) {}

  // Each function that returns a bool returns false if what it takes is refused, and refusal() says why. First:
  bool set_query(const TensorView& q);

  // Then either k and v with as many axes and batch entries as q, all attended by all: new ones first, if there are
  // any, then those of a past, which stand before them ...
  bool set_keys(const Tensor& k, const Tensor& v, const Tensor& past_key, const Tensor& past_value);
  // ... or stores of any batch, of which sequences attend the runs that they list.
  bool add_store(const Tensor& k, const Tensor& v);

  // Then the options. mask_shape: null for the queries and keys of set_keys.
  bool set_options(const MaskShape* mask_shape);

  // Then the sequences: the batch entries of set_keys, checked and then listed ...
  bool check_positions(const Integers& kv_lengths, const Integers& query_offset);
  bool list_batch(const Integers& kv_lengths, const Integers& query_offset);
  // ... or what is added here, within the stores and that mask.
  SequenceList& sequences(const MaskShape& mask_shape);

  // Or, after the query, states that are merged in place of keys: raw ones of kv_heads heads, (slots, heads of q,
  // queries, v_head_dim + 2), before the options; then sequences that list subtrees.
  bool set_subtrees(const TensorView& states, int64_t kv_heads);
  // What is written may be states, too, of the same axes and of the type of the lse: after the options.
  bool set_states(const TensorView& states);

  const Refusal& refusal() const { return refusal_; }

  // What comes out, of as many axes as q.
  Shape out_shape() const;
  Shape lse_shape() const;
  DType out_type() const { return a_.out_type; }
  DType lse_type() const { return a_.arithmetic == Arithmetic::f64 ? DType::f64 : DType::f32; }

  // Computes; lse may be left out. Throws std::bad_alloc before anything is written.
  void run(const TensorView& out, const TensorView& lse);
  void run_to_states();

 protected:  // GradientCall adds to it
  struct Sizes {
    int64_t batch, heads, tokens, channels;
  };

  Sizes sizes_of(const TensorView& x) const {  // of four axes
    const Layout& layout = options_.layout;
    return {x.shape[0], x.shape[layout.head], x.shape[layout.token], x.shape[3]};
  }
  bool check_axes(const Tensor& x);
  bool check_sizes(const Tensor& x, const Sizes& sizes, const char* first_key, int64_t channels,
                   const char* channels_of);
  bool set_mask(const MaskShape* given);
  bool set_program();
  void plan_program();
  bool set_captured(size_t index, const TensorView& view);
  bool set_sinks();
  bool check_output();
  StateRows rows_of_states(const TensorView& x) const;
  void compute();
  void use_inputs();
  bool integers_fit(const Integers& x, const char* name, bool one_for_all);
  void use_contiguous(const TensorView& x, const char*& data, Strides& strides);
  void use_scales(const TensorView& x, const char*& data, Strides& strides) const;
  Strides rows_of(const TensorView& x) const;

  bool check_shape(const TensorView& x, const char* name, const Shape& expected);
  bool refuse(Rule rule, const char* argument, const char* other = "");
  bool refuse_shape(Rule rule, const char* argument, const Shape& shape, const Shape& expected);
  bool refuse_size(Rule rule, const char* argument, const char* axis, int64_t number, int64_t expected,
                   const char* other = "");

  const Options& options_;
  const TensorView* q_ = nullptr;
  const TensorView *states_ = nullptr, *subtrees_ = nullptr;
  Sizes q_sizes_{};
  bool aligned_ = false;                  // whether keys come from set_keys
  int64_t new_keys_ = 0, past_keys_ = 0;  // of set_keys
  std::vector<const Tensor*> tensors_;    // k and v of the first store, of the second, ...
  std::vector<Store> stores_;
  std::vector<SequenceList::StoreShape> store_shapes_;
  std::vector<double> sinks_;
  std::vector<CapturedArray> captured_;
  BoundProgram program_{};
  std::vector<std::unique_ptr<char[]>> copies_;
  SequenceList sequences_;
  Attention a_{};
  Refusal refusal_{};
};

}  // namespace gqa
