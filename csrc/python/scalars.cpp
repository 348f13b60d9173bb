#include "scalars.h"

#include <pybind11/numpy.h>

#include <algorithm>

#include "../elements.h"
#include "../threads.h"
#include "bindings.h"
#include "dlpack.h"
#include "refusals.h"
#include "types.h"

namespace gqa {
namespace {

py::object borrowed(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

// The sizes of an object that has a shape, as scalars of NumPy and of other libraries do: none, for them.
bool has_axes(PyObject* object) {
  const py::object shape = py::getattr(object, "shape", py::tuple());
  return PySequence_Check(shape.ptr()) && py::len(shape) > 0;
}

}  // namespace

bool read_flag(PyObject* object, const char* name) {
  if (object == Py_True) return true;
  if (object == Py_False) return false;
  if (Py_TYPE(object) != types().numpy_bool) refuse(Rule::flag, name, borrowed(object));
  const int value = PyObject_IsTrue(object);
  if (value < 0) throw py::error_already_set();
  return value;
}

int64_t read_integer(PyObject* object, const char* name) {
  if (PyBool_Check(object) || !PyIndex_Check(object)) refuse(Rule::integer, name, borrowed(object));
  const py::object number = py::reinterpret_steal<py::object>(PyNumber_Index(object));
  if (!number) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
    PyErr_Clear();
    refuse(Rule::integer, name, borrowed(object));
  }
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow) return overflow > 0 ? unbounded : -unbounded;
  return std::clamp(value, -unbounded, unbounded);
}

double read_real(PyObject* object, const char* name) {
  if (PyFloat_Check(object)) return PyFloat_AS_DOUBLE(object);
  const PyNumberMethods* const methods = Py_TYPE(object)->tp_as_number;
  const bool number = PyLong_Check(object)
                          ? !PyBool_Check(object)
                          : methods && methods->nb_float && Py_TYPE(object) != types().numpy_bool && !has_axes(object);
  if (!number) refuse(Rule::real, name, borrowed(object));
  const double value = PyFloat_AsDouble(object);
  if (value == -1 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_OverflowError)) throw py::error_already_set();
    PyErr_Clear();
    refuse(Rule::overflow, name);
  }
  return value;
}

Layout read_layout(PyObject* object, const char* name) {
  if (!PyUnicode_Check(object)) refuse(Rule::layout_kind, name, borrowed(object));
  if (PyUnicode_CompareWithASCIIString(object, "bhsd") == 0) return bhsd;
  if (PyUnicode_CompareWithASCIIString(object, "bshd") == 0) return bshd;
  refuse(Rule::layout_name, name, borrowed(object));
}

int read_threads(PyObject* object, const char* name) {
  const int64_t threads = object == Py_None ? default_threads() : read_integer(object, name);
  if (threads < 1) refuse(Rule::at_least, name, borrowed(object));
  return int(std::min<int64_t>(threads, max_threads));
}

IntegerList::IntegerList(PyObject* object, const char* name) {
  if (object == Py_None) return;
  const bool one =
      PyUnicode_Check(object) || PyBytes_Check(object) || !(PySequence_Check(object) || is_exchangeable(object));
  if (one) {
    shape_.axes = 0;
    values_.push_back(read_integer(object, name));
  } else if (!read_plain_list(object)) {
    read_array(object, name);
  }
}

// A list or tuple of Python's own whole numbers, as far as int64 holds them.
bool IntegerList::read_plain_list(PyObject* object) {
  if (!PyList_CheckExact(object) && !PyTuple_CheckExact(object)) return false;
  const py::object items = py::reinterpret_steal<py::object>(PySequence_Tuple(object));
  if (!items) throw py::error_already_set();
  const int64_t count = PyTuple_GET_SIZE(items.ptr());
  values_.resize(size_t(count));
  for (int64_t i = 0; i < count; i++) {
    PyObject* const item = PyTuple_GET_ITEM(items.ptr(), i);
    int overflow = 0;
    if (!PyLong_CheckExact(item)) return false;
    values_[size_t(i)] = std::clamp(int64_t(PyLong_AsLongLongAndOverflow(item, &overflow)), -unbounded, unbounded);
    if (overflow) return false;
  }
  shape_ = {1, {count}};
  return true;
}

void IntegerList::read_array(PyObject* object, const char* name) {
  py::array array = py::isinstance<py::array>(object) ? py::reinterpret_borrow<py::array>(object)
                                                      : py::array(types().as_array(py::handle(object)));
  const py::dtype type = array.dtype();
  const char kind = array.size() == 0 && !py::isinstance<py::array>(object) ? 'i' : type.kind();  // [] has no type
  if (kind != 'i' && kind != 'u') refuse(Rule::integer_dtype, name, type);
  if (type.byteorder() == '>') array = array.attr("astype")(type.attr("newbyteorder")("="));
  shape_.axes = int(array.ndim());
  std::copy_n(array.shape(), std::min(shape_.axes, max_axes), shape_.sizes);
  values_.clear();
  if (shape_.axes > 1) return;
  const int64_t count = shape_.axes == 0 ? 1 : shape_.sizes[0], stride = shape_.axes == 0 ? 0 : array.strides(0);
  values_.reserve(size_t(count));
  for (int64_t i = 0; i < count; i++)
    values_.push_back(integer_at(static_cast<const char*>(array.data()) + i * stride, kind == 'i', array.itemsize()));
}

namespace {

// A list of whole numbers; `count` of them, unless that is None.
py::list int_list(const char* name, const py::object& object, const py::object& count) {
  const IntegerList list(object.ptr(), name);
  const Integers integers = list.view();
  if (!integers.given()) refuse(Rule::integer_dtype, name, py::dtype("object"));
  int64_t size = 1;
  for (int axis = 0; axis < std::min(integers.shape.axes, max_axes); axis++) size *= integers.shape.sizes[axis];
  const int64_t expected = count.is_none() ? size : count.cast<int64_t>();
  if (integers.shape.axes != 1 || size != expected) {
    Refusal refusal{};
    refusal.rule = Rule::shape, refusal.argument = name;
    refusal.shape = integers.shape, refusal.expected_shape = {1, {expected}};
    raise(refusal);
  }
  py::list numbers(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; i++) numbers[size_t(i)] = py::int_(integers.at(i));
  return numbers;
}

}  // namespace

void bind_scalars(py::module_& m) { m.def("int_list", &int_list, py::arg("name"), py::arg("value"), py::arg("count")); }

}  // namespace gqa
