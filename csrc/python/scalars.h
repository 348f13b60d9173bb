// scalars.h: Python's numbers, and NumPy's, as those of C++. What is no such number is refused by name.
//
// Reading a number may run Python code of any kind (__index__, __float__), which may change any array: all of a call's
// numbers are read before the first of its arrays.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "../call.h"

namespace gqa {

namespace py = pybind11;

bool read_flag(PyObject* object, const char* name);

// A whole number; one that int64 does not hold, or hardly, is as large as any: +-unbounded.
int64_t read_integer(PyObject* object, const char* name);

double read_real(PyObject* object, const char* name);

Layout read_layout(PyObject* object, const char* name);

// None: the default.
int read_threads(PyObject* object, const char* name);

// None, one whole number, or as many as any array or sequence holds.
class IntegerList {
 public:
  IntegerList(PyObject* object, const char* name);
  // Of that shape, without values.
  explicit IntegerList(const Shape& shape) : shape_(shape) {}

  Integers view() const { return {shape_, values_.empty() ? nullptr : values_.data()}; }

 private:
  bool read_plain_list(PyObject* object);
  void read_array(PyObject* object, const char* name);

  Shape shape_{-1, {}};
  std::vector<int64_t> values_;
};

}  // namespace gqa
