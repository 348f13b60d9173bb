#include "call.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <string>

#include "threads.h"

namespace gqa {
namespace {

using std::to_string;

constexpr int64_t most_channels = 1 << 16;
constexpr int64_t most_tokens = unbounded / 4;  // of a store, and of a sequence: positions and bounds can be added

[[noreturn]] void mismatch(const char* name, const py::array& array, const std::string& expected) {
  throw py::value_error(std::string(name) + " has shape " + shape_text(array) + ", expected " + expected);
}

}  // namespace

Call::Call(py::handle q, Layout layout) : layout_(layout), q_(as_array(q, "q", 4)) {
  a_.q_type = float_type(q_, "q");
  require_contiguous_channels(q_, "q");
  a_.q = static_cast<const char*>(q_.data());
  a_.q_strides = strides_of(q_, layout);
  a_.query_heads = q_.shape(layout.head);
  a_.head_dim = q_.shape(3);
  a_.arithmetic = a_.q_type == DType::f64 ? Arithmetic::f64 : Arithmetic::f32;
  a_.out_type = a_.q_type;
  a_.left = a_.right = unbounded;
  if (a_.head_dim > most_channels) mismatch("q", q_, "a head_dim of at most " + to_string(most_channels));
}

// One of a store's arrays, and the scales of its rows if it is quantised.
struct Call::Tensor {
  py::array array;
  DType type;
  const char *data, *scale = nullptr;
  Strides strides, scale_strides{};
};

Call::Tensor Call::tensor(py::handle object, const char* name) {
  const bool quantized = !py::isinstance<py::array>(object) && py::hasattr(object, "scale");
  Tensor t;
  t.array = as_array(quantized ? object.attr("data") : py::reinterpret_borrow<py::object>(object), name, 4);
  t.type = quantized ? quantized_type(t.array, name) : float_type(t.array, name);
  t.data = static_cast<const char*>(t.array.data());
  t.strides = strides_of(t.array, layout_);
  require_contiguous_channels(t.array, name);
  inputs_.push_back(t.array);
  if (quantized) {
    const py::array scale = as_array(object.attr("scale"), name, 3);
    if (float_type(scale, name) != DType::f32) throw py::type_error(std::string(name) + " must have scales of float32");
    if (!std::equal(scale.shape(), scale.shape() + 3, t.array.shape()))
      mismatch(name, t.array, "that of its scales and a last axis, not scales of " + shape_text(scale));
    t.scale = static_cast<const char*>(scale.data());
    t.scale_strides = strides_of(scale, layout_);
    inputs_.push_back(scale);
  }
  return t;
}

int64_t Call::add_store(py::handle k_object, py::handle v_object) {
  const Tensor k = tensor(k_object, "k"), v = tensor(v_object, "v");
  const int64_t tokens = k.array.shape(layout_.token), heads = k.array.shape(layout_.head);
  if (tokens > most_tokens) mismatch("k", k.array, "at most " + to_string(most_tokens) + " tokens");
  if (stores_.empty()) {
    a_.kv_heads = heads;
    a_.v_head_dim = v.array.shape(3);
    if (heads == 0 || a_.query_heads % heads != 0)
      mismatch("k", k.array, "a number of heads that divides the " + to_string(a_.query_heads) + " of q");
    if (a_.v_head_dim > most_channels) mismatch("v", v.array, "a head_dim of at most " + to_string(most_channels));
  }
  if (heads != a_.kv_heads || k.array.shape(3) != a_.head_dim)
    mismatch("k", k.array, to_string(a_.kv_heads) + " heads of " + to_string(a_.head_dim) + " channels");
  if (!std::equal(k.array.shape(), k.array.shape() + 3, v.array.shape()) || v.array.shape(3) != a_.v_head_dim)
    mismatch("v", v.array, "the batch, heads and tokens of k and " + to_string(a_.v_head_dim) + " channels");
  if (k.type == DType::f64 || v.type == DType::f64) a_.arithmetic = Arithmetic::f64;
  stores_.push_back(
      {k.data, v.data, k.scale, v.scale, k.strides, v.strides, k.scale_strides, v.scale_strides, k.type, v.type});
  store_shapes_.push_back({k.array.shape(0), tokens});
  return tokens;
}

void Call::reserve(int64_t sequences) {
  if (size_t(sequences) > sequences_.max_size()) throw std::bad_alloc();
  sequences_.reserve(size_t(sequences));
}

void Call::require_batch(int64_t batch) const {
  for (const StoreShape& shape : store_shapes_)
    if (shape.batch != batch)
      throw py::value_error("k and v have batch " + to_string(shape.batch) + ", expected " + to_string(batch) +
                            " as q");
}

void Call::add_run(int64_t store, int64_t batch, int64_t token, int64_t count) {
  if (count == 0) return;
  if (store < 0 || store >= int64_t(stores_.size())) throw py::value_error("runs name a store that does not exist");
  const StoreShape& shape = store_shapes_[size_t(store)];
  if (count < 0 || batch < 0 || batch >= shape.batch || token < 0 || token > shape.tokens - count)
    throw py::value_error("a run of " + to_string(count) + " tokens from [" + to_string(batch) + ", " +
                          to_string(token) + "] on is not within a store of (" + to_string(shape.batch) + ", " +
                          to_string(shape.tokens) + ")");
  if (count > most_tokens - run_keys_)
    throw py::value_error("a sequence has more than " + to_string(most_tokens) + " keys");
  runs_.push_back({run_keys_, count, store, batch, token});
  run_keys_ += count;
}

void Call::end_sequence(const Sequence& sequence) {
  if (sequence.batch < 0 || sequence.batch >= batch() || sequence.token < 0 || sequence.queries < 0 ||
      sequence.padding < 0 || sequence.token > queries() || sequence.queries > queries() - sequence.token ||
      sequence.padding > queries() - sequence.token - sequence.queries)
    throw py::value_error("a sequence is not within q");
  if (sequence.keys < 0 || sequence.keys > run_keys_)
    throw py::value_error("a sequence has " + to_string(sequence.keys) + " keys, expected 0 to " +
                          to_string(run_keys_));
  if (sequence.origin < 0 || sequence.origin > most_tokens - sequence.keys)
    throw py::value_error("a sequence begins at key " + to_string(sequence.origin) + ", expected 0 to " +
                          to_string(most_tokens - sequence.keys));
  sequences_.push_back(sequence);
  sequences_.back().offset = std::clamp(sequence.offset, -unbounded / 2, unbounded / 2);
  sequences_.back().runs = nullptr;
  sequences_.back().run_count = int64_t(runs_.size()) - run_begin_;
  run_begin_ = int64_t(runs_.size());
  run_keys_ = 0;
}

void Call::set_mask(py::handle object, int64_t batch, int64_t queries, int64_t keys) {
  if (object.is_none()) return;
  if (!py::isinstance<py::array>(object)) throw py::type_error("mask must be a NumPy array");
  refuse_masked(object, "mask");
  const py::array mask = py::reinterpret_borrow<py::array>(object);
  a_.mask_type = mask_type(mask, "mask");
  const int64_t sizes[4] = {batch, a_.query_heads, queries, keys};
  int64_t strides[4] = {};
  const int missing = 4 - int(mask.ndim());
  for (int i = std::max(0, missing); i < 4; i++) {
    const int64_t size = missing < 0 ? -1 : mask.shape(i - missing);
    if (size != sizes[i] && size != 1)
      mismatch("mask", mask,
               "one that broadcasts to (" + to_string(batch) + ", " + to_string(a_.query_heads) + ", " +
                   to_string(queries) + ", " + to_string(keys) + ")");
    strides[i] = size == 1 ? 0 : mask.strides(i - missing);
  }
  a_.mask = static_cast<const char*>(mask.data());
  a_.mask_strides = {strides[0], strides[1], strides[2]};
  a_.mask_key_stride = strides[3];
  inputs_.push_back(mask);
}

void Call::set_positions(py::handle causal, py::handle window) {
  auto bound = [](py::handle side) {
    if (side.is_none()) return unbounded;
    const int64_t n = as_int(side, "window");
    if (n < 0) throw py::value_error("window has the negative bound " + to_string(n) + "; use None for no bound");
    return n;
  };
  if (!window.is_none()) {
    if (!PyTuple_Check(window.ptr()) || PyTuple_GET_SIZE(window.ptr()) != 2)
      throw py::type_error("window must be a tuple (left, right)");
    a_.left = bound(PyTuple_GET_ITEM(window.ptr(), 0));
    a_.right = bound(PyTuple_GET_ITEM(window.ptr(), 1));
  }
  if (as_bool(causal, "causal")) a_.right = 0;
}

void Call::set_scores(py::handle scale, py::handle softcap, py::handle sinks) {
  a_.scale = scale.is_none() ? 1 / std::sqrt(double(std::max<int64_t>(a_.head_dim, 1))) : as_float(scale, "scale");
  a_.softcap = as_float(softcap, "softcap");
  if (!std::isfinite(a_.scale)) throw py::value_error("scale must be finite");
  if (!(a_.softcap >= 0) || !std::isfinite(a_.softcap)) throw py::value_error("softcap must be 0 or positive");
  if (a_.softcap > 1e30) a_.softcap = 0;  // tanh is the identity there, and softcap could overflow
  if (sinks.is_none()) return;
  const py::array array = as_array(sinks, "sinks", 1);
  const DType type = float_type(array, "sinks");
  if (type != DType::f32 && type != DType::f64) throw py::type_error("sinks must be float32 or float64");
  if (array.shape(0) != a_.query_heads)
    mismatch("sinks", array, "one value for each of the " + to_string(a_.query_heads) + " heads of q");
  for (int64_t h = 0; h < a_.query_heads; h++) {
    const char* p = static_cast<const char*>(array.data()) + h * array.strides(0);
    sinks_.push_back(type == DType::f32 ? double(element<float>(p)) : element<double>(p));
  }
  a_.sinks = sinks_.data();
  inputs_.push_back(array);
}

py::object Call::run(py::handle out_object, py::handle return_lse, py::handle num_threads) {
  const bool want_lse = as_bool(return_lse, "return_lse");
  const int64_t threads = num_threads.is_none() ? default_threads() : as_int(num_threads, "num_threads");
  if (threads < 1) throw py::value_error("num_threads must be at least 1");
  a_.threads = int(std::min<int64_t>(threads, most_threads));

  py::array out;
  std::vector<py::ssize_t> shape = {q_.shape(0), q_.shape(1), q_.shape(2), a_.v_head_dim};
  if (out_object.is_none()) {
    out = py::array(q_.dtype(), shape);
  } else {
    out = as_array(out_object, "out", 4);
    if (!out.dtype().equal(q_.dtype())) throw py::type_error("out must have the dtype of q");
    if (!std::equal(shape.begin(), shape.end(), out.shape()))
      mismatch("out", out,
               "(" + to_string(shape[0]) + ", " + to_string(shape[1]) + ", " + to_string(shape[2]) + ", " +
                   to_string(shape[3]) + ")");
    require_output(out, "out");
    check_inputs_against(out);
  }
  a_.out = static_cast<char*>(out.mutable_data());
  a_.out_strides = strides_of(out, layout_);
  a_.out_channel_stride = out.strides(3);
  py::array lse;
  if (want_lse) {
    shape.pop_back();
    lse = py::array(a_.arithmetic == Arithmetic::f64 ? py::dtype::of<double>() : py::dtype::of<float>(), shape);
    a_.lse = static_cast<char*>(lse.mutable_data());
    a_.lse_strides = strides_of(lse, layout_);
  }

  const Run* runs = runs_.data();
  for (Sequence& sequence : sequences_) {
    sequence.runs = runs;
    runs += sequence.run_count;
  }
  a_.stores = stores_.data();
  a_.sequences = sequences_.data();
  a_.sequence_count = int64_t(sequences_.size());
  if (out.size() > 0 || (want_lse && lse.size() > 0)) {
    py::gil_scoped_release release;
    attend(a_);
  }
  if (want_lse) return py::make_tuple(std::move(out), std::move(lse));
  return std::move(out);
}

void Call::check_inputs_against(const py::array& out) const {
  if (spans_overlap(out, q_)) throw py::value_error("out overlaps q in memory");
  for (const py::array& input : inputs_)
    if (spans_overlap(out, input)) throw py::value_error("out overlaps an input in memory");
}

}  // namespace gqa
