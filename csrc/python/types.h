// types.h: what is looked up in other modules once.
#pragma once

#include <pybind11/pybind11.h>

namespace gqa {

namespace py = pybind11;

struct Types {
  PyTypeObject* numpy_bool;    // numpy.bool_
  PyTypeObject* masked_array;  // numpy.ma.MaskedArray
  PyTypeObject* quantized;     // gqa.Quantized
  py::object as_array;         // numpy.asarray
};

const Types& types();

// A module of the package that the extension is in: gqa, or what a copy of it was named.
py::module_ sibling(const char* name);
void set_package(const py::module_& extension);

// ml_dtypes' bfloat16; ModuleNotFoundError, which says what to install, where it is not there.
py::object bfloat16_dtype();

}  // namespace gqa
