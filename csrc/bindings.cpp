// bindings.cpp: the extension module gqa._core.
#include <pybind11/stl.h>

#include <optional>

#include "call.h"
#include "dispatch.h"
#include "python/bindings.h"
#include "threads.h"

namespace gqa {
namespace {

// A whole number for each batch entry: None, one for all, or an array (batch,) of int32 or int64.
class PerBatch {
 public:
  PerBatch(py::handle object, const char* name, int64_t batch) : given_(!object.is_none()) {
    if (!given_) return;
    if (!py::isinstance<py::array>(object)) {
      one_ = as_int(object, name);
      return;
    }
    array_ = as_array(object, name, 1);
    const py::dtype type = array_->dtype();
    wide_ = type.equal(py::dtype::of<int64_t>());
    if (!wide_ && !type.equal(py::dtype::of<int32_t>()))
      throw py::type_error(std::string(name) + " must be int32 or int64");
    if (array_->shape(0) != batch)
      throw py::value_error(std::string(name) + " must have one value for each batch entry");
  }
  bool given() const { return given_; }
  bool is_array() const { return array_.has_value(); }
  int64_t at(int64_t b) const {
    if (!array_) return one_;
    const char* p = static_cast<const char*>(array_->data()) + b * array_->strides(0);
    return wide_ ? element<int64_t>(p) : element<int32_t>(p);
  }

 private:
  const bool given_;
  bool wide_ = true;
  int64_t one_ = 0;
  std::optional<py::array> array_;
};

// The arguments of gqa.attention, four axes everywhere.
py::object attention(py::handle q, py::handle k, py::handle v, py::handle past_key, py::handle past_value,
                     py::handle mask, py::handle causal, py::handle query_offset, py::handle window,
                     py::handle kv_lengths, py::handle scale, py::handle softcap, py::handle sinks, py::handle layout,
                     py::handle out, py::handle return_lse, py::handle num_threads) {
  Call call(q, layout_named(layout));
  const int64_t batch = call.batch(), queries = call.queries();
  const bool has_past = !past_key.is_none() || !past_value.is_none(), has_new = !k.is_none() || !v.is_none();
  if (!has_past && !has_new) throw py::value_error("k and v, or past_key and past_value, must be given");
  const int64_t past = has_past ? call.add_store(past_key, past_value) : 0, fresh = has_new ? call.add_store(k, v) : 0,
                keys = past + fresh;
  call.require_batch(batch);
  call.set_mask(mask, batch, queries, keys);
  call.set_positions(causal, window);
  call.set_scores(scale, softcap, sinks);

  const PerBatch lengths(kv_lengths, "kv_lengths", batch), offsets(query_offset, "query_offset", batch);
  if (lengths.given() && !lengths.is_array()) throw py::type_error("kv_lengths must be an array");
  call.reserve(batch);
  for (int64_t b = 0; b < batch; b++) {
    const int64_t length = lengths.given() ? lengths.at(b) : keys;
    if (length < 0 || length > keys)
      throw py::value_error("kv_lengths[" + std::to_string(b) + "] is " + std::to_string(length) + ", expected 0 to " +
                            std::to_string(keys));
    if (has_past) call.add_run(0, b, 0, past);
    if (has_new) call.add_run(has_past, b, 0, fresh);
    Sequence sequence{};
    sequence.batch = sequence.mask_batch = b;
    sequence.queries = queries;
    sequence.offset = offsets.given() ? offsets.at(b) : length - queries;
    sequence.keys = length;
    call.end_sequence(sequence);
  }
  return call.run(out, return_lse, num_threads);
}

// A C-contiguous int64 array of rows of `columns` numbers.
class Table {
 public:
  Table(py::handle object, const char* name, int columns) : array_(as_array(object, name, 2)), columns_(columns) {
    if (!array_.dtype().equal(py::dtype::of<int64_t>()) || array_.shape(1) != columns ||
        !(array_.flags() & py::array::c_style))
      throw py::value_error(std::string(name) + " must be C-contiguous int64 of " + std::to_string(columns) +
                            " columns");
  }
  int64_t rows() const { return array_.shape(0); }
  const int64_t* row(int64_t i) const { return static_cast<const int64_t*>(array_.data()) + i * columns_; }

 private:
  const py::array array_;
  const int columns_;
};

// Attention of sequences that lie anywhere in q and whose keys are any runs of any stores.
// stores: tuples (k, v), four axes each, in `layout`.
// sequences: rows of batch, token, queries, padding, origin, offset, keys, mask batch, mask key, number of runs.
// runs: rows of store, batch, token, count; those of the first sequence, then those of the second, and so on.
// mask_shape: batch, queries and keys that the mask broadcasts to, next to the heads of q.
py::object attend_sequences(py::handle q, const py::list& stores, py::handle sequences_table, py::handle runs_table,
                            py::handle mask, std::array<int64_t, 3> mask_shape, py::handle causal, py::handle window,
                            py::handle scale, py::handle softcap, py::handle sinks, py::handle layout, py::handle out,
                            py::handle return_lse, py::handle num_threads) {
  Call call(q, layout_named(layout));
  if (stores.empty()) throw py::value_error("there must be a store");
  for (py::handle store : stores) {
    if (!PyTuple_Check(store.ptr()) || PyTuple_GET_SIZE(store.ptr()) != 2)
      throw py::type_error("a store is a tuple (k, v)");
    call.add_store(PyTuple_GET_ITEM(store.ptr(), 0), PyTuple_GET_ITEM(store.ptr(), 1));
  }
  call.set_mask(mask, mask_shape[0], mask_shape[1], mask_shape[2]);
  call.set_positions(causal, window);
  call.set_scores(scale, softcap, sinks);

  const Table sequences(sequences_table, "sequences", 10), runs(runs_table, "runs", 4);
  int64_t run = 0;
  for (int64_t i = 0; i < sequences.rows(); i++) {
    const int64_t* s = sequences.row(i);
    if (s[9] < 0 || s[9] > runs.rows() - run) throw py::value_error("sequences have more runs than there are");
    for (const int64_t end = run + s[9]; run < end; run++) {
      const int64_t* r = runs.row(run);
      call.add_run(r[0], r[1], r[2], r[3]);
    }
    Sequence sequence{};
    sequence.batch = s[0], sequence.token = s[1], sequence.queries = s[2], sequence.padding = s[3];
    sequence.origin = s[4], sequence.offset = s[5], sequence.keys = s[6];
    sequence.mask_batch = s[7], sequence.mask_key = s[8];
    call.end_sequence(sequence);
    if (!mask.is_none() && (sequence.mask_batch < 0 || sequence.mask_batch >= mask_shape[0] ||
                            sequence.queries > mask_shape[1] || sequence.mask_key < 0 ||
                            sequence.mask_key > mask_shape[2] || sequence.keys > mask_shape[2] - sequence.mask_key))
      throw py::value_error("a sequence is not within the mask");
  }
  return call.run(out, return_lse, num_threads);
}

// The numbers of those of `others`, arrays or None, whose memory may be that of x: their spans overlap.
std::vector<size_t> near(const py::array& x, const py::tuple& others) {
  std::vector<size_t> found;
  for (size_t i = 0; i < others.size(); i++) {
    const py::handle other = PyTuple_GET_ITEM(others.ptr(), py::ssize_t(i));
    if (other.is_none()) continue;
    if (!py::isinstance<py::array>(other)) throw py::type_error("others must be NumPy arrays or None");
    if (spans_overlap(x, py::reinterpret_borrow<py::array>(other))) found.push_back(i);
  }
  return found;
}

}  // namespace

// gqa._core: python/init.cpp lets Python in.
PYBIND11_MODULE(core, m, py::mod_gil_not_used()) {
  m.doc() = "The native kernels of gqa.";
  m.def("attention", &attention);
  m.def("attend_sequences", &attend_sequences);
  bind_rotary(m);
  bind_states(m);
  m.def("near", &near, py::arg("x").noconvert(), py::arg("others"));
  m.def("available_isas", &available_isas);
  m.def("isa", [] { return std::string(active_kernels().name); });
  m.def("use_isa", &use_isa);
  m.def("default_threads", &default_threads_now);
  m.def("set_threads", &set_threads);
  m.def("has_openmp", &has_openmp);
  m.attr("__version__") = GQA_VERSION;
}

}  // namespace gqa
