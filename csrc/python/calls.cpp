#include "calls.h"

#include <algorithm>
#include <string>

#include "refusals.h"
#include "without_gil.h"

namespace gqa {
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

py::array new_array(const Shape& shape, DType type, PyObject* like) {
  py::object dtype;
  if (is_array(like)) {
    dtype = py::reinterpret_borrow<py::array>(like).dtype();
    if (type != type_of(py::reinterpret_borrow<py::dtype>(dtype))) dtype = py::object();
  }
  if (!dtype) dtype = type == DType::f32 ? py::dtype::of<float>() : dtype_of(type);
  return py::array(py::reinterpret_borrow<py::dtype>(dtype),
                   std::vector<py::ssize_t>(shape.sizes, shape.sizes + shape.axes));
}

py::object described_results(const Call& call) {
  const auto described = [](const Shape& shape, DType type) { return py::make_tuple(as_tuple(shape), name_of(type)); };
  return py::make_tuple(described(call.out_shape(), call.out_type()), described(call.lse_shape(), call.lse_type()));
}

// Numbers of which only the shape may be known: a tuple (shape, name of the dtype) of integers.
IntegerList described_integers(PyObject* object, const char* name) {
  if (!PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) != 2 || !PyTuple_CheckExact(PyTuple_GET_ITEM(object, 0)))
    return IntegerList(object, name);
  const py::object dtype = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(object, 1));
  const auto type = dtype.cast<std::string>();
  if (type.rfind("int", 0) != 0 && type.rfind("uint", 0) != 0) refuse(Rule::integer_dtype, name, dtype);
  const auto sizes = py::reinterpret_borrow<py::tuple>(PyTuple_GET_ITEM(object, 0));
  Shape shape{int(sizes.size()), {}};
  for (int i = 0; i < std::min(shape.axes, max_axes); i++) shape.sizes[i] = sizes[size_t(i)].cast<int64_t>();
  return IntegerList(shape);
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
    const py::array array = new_array(call.out_shape(), call.out_type(), q);
    out_view = view_of(array);
    out = array;
  }
  py::array lse;
  if (options.return_lse) {
    lse = new_array(call.lse_shape(), call.lse_type(), Py_None);
    lse_view = view_of(lse);
  }
  without_gil([&] { call.run(out_view, lse_view); });
  if (options.return_lse) return py::make_tuple(std::move(out), std::move(lse));
  return out;
}

}  // namespace gqa
