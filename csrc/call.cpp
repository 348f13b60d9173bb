#include "call.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "threads.h"

namespace gqa {
namespace {

using std::to_string;

constexpr int64_t most_channels = 1 << 16;

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
  a_.in_double = a_.q_type == DType::f64;
  a_.left = a_.right = unbounded;
  if (a_.head_dim > most_channels) mismatch("q", q_, "a head_dim of at most " + to_string(most_channels));
}

int64_t Call::add_store(py::handle k_object, py::handle v_object, py::handle k_scale, py::handle v_scale) {
  const py::array k = as_array(k_object, "k", 4), v = as_array(v_object, "v", 4);
  require_contiguous_channels(k, "k");
  require_contiguous_channels(v, "v");
  const int64_t tokens = k.shape(layout_.token), heads = k.shape(layout_.head);
  if (stores_.empty()) {
    a_.kv_heads = heads;
    a_.v_head_dim = v.shape(3);
    if (heads == 0 || a_.query_heads % heads != 0)
      mismatch("k", k, "a number of heads that divides the " + to_string(a_.query_heads) + " of q");
    if (a_.v_head_dim > most_channels) mismatch("v", v, "a head_dim of at most " + to_string(most_channels));
  }
  if (heads != a_.kv_heads || k.shape(3) != a_.head_dim)
    mismatch("k", k, to_string(a_.kv_heads) + " heads of " + to_string(a_.head_dim) + " channels");
  if (v.shape(0) != k.shape(0) || v.shape(layout_.token) != tokens || v.shape(layout_.head) != heads ||
      v.shape(3) != a_.v_head_dim)
    mismatch("v", v, "the batch, heads and tokens of k and " + to_string(a_.v_head_dim) + " channels");

  Store store{};
  auto scales = [&](const py::array& data, DType type, py::handle object, const char* name,
                    Strides& strides) -> const char* {
    if (type != DType::i8) {
      if (!object.is_none()) throw py::type_error(std::string(name) + " was given for an array that is not int8");
      return nullptr;
    }
    if (object.is_none()) throw py::type_error("an int8 array needs its scales, as gqa.quantize gives them");
    const py::array scale = as_array(object, name, 3);
    if (float_type(scale, name) != DType::f32) throw py::type_error(std::string(name) + " must be float32");
    for (int i = 0; i < 3; i++)
      if (scale.shape(i) != data.shape(i))
        mismatch(name, scale, "that of its data " + shape_text(data) + " less the last axis");
    strides = strides_of(scale, layout_);
    inputs_.push_back(scale);
    return static_cast<const char*>(scale.data());
  };
  store.k_type = cache_type(k, "k");
  store.v_type = cache_type(v, "v");
  store.k = static_cast<const char*>(k.data());
  store.v = static_cast<const char*>(v.data());
  store.k_strides = strides_of(k, layout_);
  store.v_strides = strides_of(v, layout_);
  store.k_scale = scales(k, store.k_type, k_scale, "k_scale", store.k_scale_strides);
  store.v_scale = scales(v, store.v_type, v_scale, "v_scale", store.v_scale_strides);
  a_.in_double |= store.k_type == DType::f64 || store.v_type == DType::f64;
  stores_.push_back(store);
  store_shapes_.push_back({k.shape(0), tokens});
  inputs_.push_back(k);
  inputs_.push_back(v);
  return tokens;
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
  if (sinks.is_none()) return;
  const py::array array = as_array(sinks, "sinks", 1);
  if (float_type(array, "sinks") != DType::f64 || array.shape(0) != a_.query_heads)
    mismatch("sinks", array, to_string(a_.query_heads) + " float64 values, one for each head of q");
  for (int64_t h = 0; h < a_.query_heads; h++)
    sinks_.push_back(*reinterpret_cast<const double*>(static_cast<const char*>(array.data()) + h * array.strides(0)));
  a_.sinks = sinks_.data();
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
      mismatch("out", out, py::str(py::tuple(py::cast(shape))).cast<std::string>());
    require_output(out, "out");
    check_inputs_against(out);
  }
  a_.out = static_cast<char*>(out.mutable_data());
  a_.out_strides = strides_of(out, layout_);
  a_.out_channel_stride = out.strides(3);
  py::array lse;
  if (want_lse) {
    shape.pop_back();
    lse = py::array(a_.in_double ? py::dtype::of<double>() : py::dtype::of<float>(), shape);
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
  if (a_.query_heads > 0) {
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
