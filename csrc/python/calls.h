// calls.h: what the extension's functions for attention have in common.
//
// They are plain functions of Python's C API: a call of a few microseconds would feel pybind11's dispatcher.
#pragma once

#include <exception>
#include <new>

#include "options.h"
#include "scalars.h"

namespace gqa {

// Calls `work`, which returns a py::object, with its C++ exceptions as Python's.
template <class F> PyObject* guarded(const F& work) {
  try {
    return work().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// One of these functions, as a module's table lists it.
template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyMethodDef method(const char* name, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, doc};
}

// TypeError unless a function has so many arguments, a tuple so many items; returns the items.
void require_arguments(const char* function, Py_ssize_t count, Py_ssize_t expected);
PyObject* const* items_of(PyObject* tuple, Py_ssize_t count, const char* what);

TensorView query_view(Views& views, PyObject* q);

// The output, or (output, lse). q: the object, whose dtype a new output takes.
py::object compute(Call& call, const OptionReader& reader, PyObject* q);

// ((out's shape, name of its dtype), (lse's shape, name of its dtype)).
py::object described_results(const Call& call);

// A new array, of the dtype of the object `like` where that is one of NumPy's of that type: bfloat16 is another
// package's.
py::array new_array(const Shape& shape, DType type, PyObject* like);

// Numbers of which only the shape may be known: a tuple (shape, name of the dtype) of integers.
IntegerList described_integers(PyObject* object, const char* name);

PyObject* attend_sequences(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* infer_sequences(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* attend_states(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* merge_subtrees(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace gqa
