// init.cpp: where Python enters the extension: before anything of pybind11, whose own entry waits for ever in an
// interpreter that is not the main one (Python 3.11).
#include <pybind11/pybind11.h>

extern "C" PYBIND11_EXPORT PyObject* PyInit_core();  // of PYBIND11_MODULE

extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
  if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
    PyErr_SetString(PyExc_ImportError, "gqa cannot be imported in a sub-interpreter, only in the main interpreter");
    return nullptr;
  }
  return PyInit_core();
}
