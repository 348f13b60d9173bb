// arrays.h: arrays that gqa prepares for the extension itself. Checks what the kernels rely on and copies nothing;
// gqa has said what is wrong with them before, in better words.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "../tensor.h"

namespace gqa {

namespace py = pybind11;

// `object` as an array of `ndim` axes; TypeError or ValueError otherwise.
py::array as_array(py::handle object, const char* name, int ndim);

// TypeError unless the array holds floats, in native byte order.
DType float_type(const py::array& array, const char* name);

Strides strides_of(const py::array& array, Layout layout);

// ValueError unless channels, the last axis, are contiguous.
void require_contiguous_channels(const py::array& array, const char* name);

// ValueError unless the array can be written, and no two of its elements share memory.
void require_output(const py::array& array, const char* name);

// Whether two arrays of any types share a byte, or may share one where that is too hard to tell.
bool share_memory(const py::array& a, const py::array& b);

std::string shape_text(const py::array& array);

}  // namespace gqa
