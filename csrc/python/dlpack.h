// dlpack.h: tensors of other libraries, by the DLPack protocol (https://dmlc.github.io/dlpack/latest/).
#pragma once

#include <pybind11/pybind11.h>

#include "../tensor.h"

namespace gqa {

namespace py = pybind11;

// Whether an object offers its memory by `__dlpack__`.
bool is_exchangeable(PyObject* object);

struct Exchanged {
  TensorView view;  // of type `none` if it is none that gqa knows
  char type_name[24];
  py::object owner;  // keeps the memory alive
};

// Refuses what does not lie in the CPU's memory, and what its library does not hand out.
Exchanged exchange(PyObject* object, const char* name);

}  // namespace gqa
