// bindings.cpp: the extension module gqa._core.
#include <pybind11/stl.h>

#include "call.h"
#include "dispatch.h"
#include "threads.h"

namespace gqa {
namespace {

Layout layout_named(py::handle name) {
  if (!PyUnicode_Check(name.ptr())) throw py::type_error("layout must be a string");
  if (PyUnicode_CompareWithASCIIString(name.ptr(), "bhsd") == 0) return bhsd;
  if (PyUnicode_CompareWithASCIIString(name.ptr(), "bshd") == 0) return bshd;
  throw py::value_error("layout must be 'bhsd' or 'bshd'");
}

// A whole number for each batch entry: None (`otherwise`), one for all, or an int64 array (batch,).
class PerBatch {
 public:
  PerBatch(py::handle object, const char* name, int64_t batch) {
    if (object.is_none()) return;
    given_ = true;
    if (PyLong_Check(object.ptr())) {
      one_ = as_int(object, name);
      return;
    }
    array_ = as_array(object, name, 1);
    if (!array_.dtype().equal(py::dtype::of<int64_t>())) throw py::type_error(std::string(name) + " must be int64");
    if (array_.shape(0) != batch) throw py::value_error(std::string(name) + " must have one value for each batch entry");
  }
  bool given() const { return given_; }
  int64_t at(int64_t b) const {
    if (!array_) return one_;
    int64_t value;
    std::memcpy(&value, static_cast<const char*>(array_.data()) + b * array_.strides(0), sizeof value);
    return value;
  }

 private:
  bool given_ = false;
  int64_t one_ = 0;
  py::array array_{py::reinterpret_steal<py::array>(py::handle())};
};

// The arguments of gqa.attention, four axes everywhere; k_scale to past_value_scale belong to int8 arrays.
py::object attention(py::handle q, py::handle k, py::handle v, py::handle past_key, py::handle past_value, py::handle mask,
                     py::handle causal, py::handle query_offset, py::handle window, py::handle kv_lengths, py::handle scale,
                     py::handle softcap, py::handle sinks, py::handle layout, py::handle out, py::handle return_lse,
                     py::handle num_threads, py::handle k_scale, py::handle v_scale, py::handle past_key_scale,
                     py::handle past_value_scale) {
  Call call(q, layout_named(layout));
  const int64_t batch = call.batch(), queries = call.queries();
  const bool has_past = !past_key.is_none() || !past_value.is_none(), has_new = !k.is_none() || !v.is_none();
  if (!has_past && !has_new) throw py::value_error("k and v, or past_key and past_value, must be given");
  const int64_t past = has_past ? call.add_store(past_key, past_value, past_key_scale, past_value_scale) : 0,
                fresh = has_new ? call.add_store(k, v, k_scale, v_scale) : 0, keys = past + fresh;
  call.require_batch(batch);
  call.set_mask(mask, batch, queries, keys);
  call.set_positions(causal, window);
  call.set_scores(scale, softcap, sinks);

  const PerBatch lengths(kv_lengths, "kv_lengths", batch), offsets(query_offset, "query_offset", batch);
  for (int64_t b = 0; b < batch; b++) {
    const int64_t length = lengths.given() ? lengths.at(b) : keys;
    if (length < 0 || length > keys)
      throw py::value_error("kv_lengths[" + std::to_string(b) + "] is " + std::to_string(length) + ", expected 0 to " + std::to_string(keys));
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

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The native kernels of gqa.";
  m.def("attention", &attention);
  m.def("available_isas", &available_isas);
  m.def("isa", [] { return std::string(active_kernels().name); });
  m.def("use_isa", &use_isa);
  m.def("default_threads", &default_threads);
  m.def("set_threads", &set_threads);
  m.def("has_openmp", &has_openmp);
  m.attr("__version__") = GQA_VERSION;
}

}  // namespace gqa
