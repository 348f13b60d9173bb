#include "calls.h"

#include <string>

#include "refusals.h"
#include "without_gil.h"

namespace gqa {
namespace {

py::array new_array(const Shape& shape, py::dtype dtype) {
  return py::array(std::move(dtype), std::vector<py::ssize_t>(shape.sizes, shape.sizes + shape.axes));
}

// The dtype of the output: q's own where it can be, since bfloat16 is another package's.
py::dtype out_dtype(DType type, PyObject* q) {
  if (is_array(q)) {
    const py::dtype dtype = py::reinterpret_borrow<py::array>(q).dtype();
    if (type == type_of(dtype)) return dtype;
  }
  return type == DType::f32 ? py::dtype::of<float>() : dtype_of(type);
}

}  // namespace

void require_arguments(const char* function, Py_ssize_t count, Py_ssize_t expected) {
  if (count != expected)
    throw py::type_error(std::string(function) + " takes " + std::to_string(expected) + " arguments, not " +
                         std::to_string(count));
}

PyObject* const* items_of(PyObject* tuple, Py_ssize_t count, const char* what) {
  if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != count)
    throw py::type_error(std::string(what) + " must be a tuple of " + std::to_string(count));
  return &PyTuple_GET_ITEM(tuple, 0);
}

TensorView query_view(Views& views, PyObject* q) {
  if (is_quantized(q)) refuse(Rule::quantized, "q");
  const TensorView view = views.view(q, "q", Role::floats);
  if (!view.given()) refuse(Rule::tensor_kind, "q", py::none());
  return view;
}

py::object compute(Call& call, const OptionReader& reader, PyObject* q) {
  const Options& options = reader.options();
  py::object out;
  TensorView out_view = options.out, lse_view;
  if (out_view.given()) {
    out = py::reinterpret_borrow<py::object>(reader.out());
  } else {
    const py::array array = new_array(call.out_shape(), out_dtype(call.out_type(), q));
    out_view = view_of(array);
    out = array;
  }
  py::array lse;
  if (options.return_lse) {
    lse = new_array(call.lse_shape(), call.lse_type() == DType::f64 ? py::dtype::of<double>() : py::dtype::of<float>());
    lse_view = view_of(lse);
  }
  without_gil([&] { call.run(out_view, lse_view); });
  if (options.return_lse) return py::make_tuple(std::move(out), std::move(lse));
  return out;
}

}  // namespace gqa
