// arrays.h: NumPy arrays as plain memory. Checks what the kernels rely on and copies nothing.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>

#include "attention.h"

namespace gqa {

namespace py = pybind11;

// The axes of a batched tensor: (batch, heads, tokens, ...) or (batch, tokens, heads, ...).
struct Layout {
  int head, token;
};
constexpr Layout bhsd{1, 2}, bshd{2, 1};

// ValueError unless it is "bhsd" or "bshd".
Layout layout_named(py::handle name);

// TypeError for a numpy.ma.MaskedArray, whose mask would have no effect.
void refuse_masked(py::handle array, const char* name);

// `object` as an array of `ndim` axes; TypeError or ValueError otherwise.
py::array as_array(py::handle object, const char* name, int ndim);

// TypeError unless the array holds floats; int8; floats or booleans; in native byte order.
DType float_type(const py::array& array, const char* name);
DType quantized_type(const py::array& array, const char* name);
DType mask_type(const py::array& array, const char* name);

Strides strides_of(const py::array& array, Layout layout);

// ValueError unless channels, the last axis, are contiguous.
void require_contiguous_channels(const py::array& array, const char* name);

// ValueError unless the array can be written, and no two of its elements share memory.
void require_output(const py::array& array, const char* name);

// Whether the memory spans of two arrays, from first to last byte, overlap.
bool spans_overlap(const py::array& a, const py::array& b);

// An integer, a flag, a float; TypeError for anything else.
int64_t as_int(py::handle object, const char* name);
bool as_bool(py::handle object, const char* name);
double as_float(py::handle object, const char* name);

// The threads that a call may use: what `num_threads` says, or the default where it is None. ValueError below 1.
int thread_count(py::handle num_threads);

std::string shape_text(const py::array& array);

// The element at an address that may not be aligned.
template <class T> T element(const char* p) {
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

}  // namespace gqa
