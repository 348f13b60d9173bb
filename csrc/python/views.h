// views.h: Python's tensors as TensorViews. NumPy arrays are read by their structure, other libraries' by DLPack.
#pragma once

#include <pybind11/numpy.h>

#include <vector>

#include "../call.h"

namespace gqa {

namespace py = pybind11;

// What an argument is for, which decides the types that it may have.
enum class Role { floats, mask, captured };

// Makes views, and keeps what they show alive. Each is refused by name unless its type fits.
class Views {
 public:
  // described: a tensor may also be a tuple (shape, name of its dtype), the view of which has no data.
  explicit Views(bool described = false) : described_(described) {}

  // None gives no tensor.
  TensorView view(PyObject* object, const char* name, Role role);

  // Floats, or int8 with its scales: gqa.Quantized.
  Tensor tensor(PyObject* object, const char* name);

 private:
  TensorView numpy_view(PyObject* object, const char* name, Role role);
  TensorView described_view(PyObject* description, const char* name, Role role, bool& quantized);

  const bool described_;
  std::vector<py::object> owners_;
};

bool is_array(PyObject* object);
bool is_quantized(PyObject* object);

// `none` if it is none that gqa knows.
DType type_of(const py::dtype& type);

// The view of an array of NumPy, of type `none` if it has none that gqa knows; the array is no tuple or masked array.
TensorView view_of(const py::array& array);

// NumPy's dtype of that name; ModuleNotFoundError for bfloat16 without ml_dtypes.
py::dtype dtype_of(DType type);

// An array (any tensor that is none yet, without a copy).
py::array array_of(PyObject* object, const char* name);

}  // namespace gqa
