#include "arrays.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>
#include <vector>

#include "threads.h"

namespace gqa {
namespace {

// NumPy's numbers for its own types; bfloat16 is registered by another package, under a number found at run time.
constexpr int num_bool = 0, num_int8 = 1, num_float32 = 11, num_float64 = 12, num_float16 = 23, first_user_num = 256;

bool is_bfloat16(const py::dtype& type) {
  static std::atomic<int> known{-1};
  const int num = type.num();
  if (num < first_user_num) return false;
  if (num == known.load(std::memory_order_relaxed)) return true;
  if (type.attr("name").cast<std::string>() != "bfloat16") return false;
  known = num;
  return true;
}

DType type_of(const py::array& array) {
  const py::dtype type = array.dtype();
  if (type.byteorder() == '>') return DType::none;
  switch (type.num()) {
    case num_float32: return DType::f32;
    case num_float64: return DType::f64;
    case num_float16: return DType::f16;
    case num_int8: return DType::i8;
    case num_bool: return DType::boolean;
    default: return is_bfloat16(type) ? DType::bf16 : DType::none;
  }
}

[[noreturn]] void wrong_type(const py::array& array, const char* name, const char* expected) {
  throw py::type_error(std::string(name) + " has dtype " + py::str(array.dtype()).cast<std::string>() + ", expected " +
                       expected);
}

// First and last byte, end exclusive, of the memory that an array spans.
std::pair<intptr_t, intptr_t> span(const py::array& array) {
  intptr_t low = reinterpret_cast<intptr_t>(array.data()), high = low;
  for (py::ssize_t i = 0; i < array.ndim(); i++) {
    if (array.shape(i) == 0) return {low, low};
    const intptr_t reach = (array.shape(i) - 1) * array.strides(i);
    (reach < 0 ? low : high) += reach;
  }
  return {low, high + array.itemsize()};
}

}  // namespace

Layout layout_named(py::handle name) {
  if (!PyUnicode_Check(name.ptr())) throw py::type_error("layout must be a string");
  if (PyUnicode_CompareWithASCIIString(name.ptr(), "bhsd") == 0) return bhsd;
  if (PyUnicode_CompareWithASCIIString(name.ptr(), "bshd") == 0) return bshd;
  throw py::value_error("layout must be 'bhsd' or 'bshd'");
}

void refuse_masked(py::handle array, const char* name) {
  const bool plain = Py_TYPE(array.ptr()) == py::detail::npy_api::get().PyArray_Type_;
  if (!plain && py::hasattr(array, "mask"))
    throw py::type_error(std::string(name) + " is a masked array, expected a NumPy array");
}

py::array as_array(py::handle object, const char* name, int ndim) {
  if (!py::isinstance<py::array>(object)) throw py::type_error(std::string(name) + " must be a NumPy array");
  refuse_masked(object, name);
  py::array array = py::reinterpret_borrow<py::array>(object);
  if (array.ndim() != ndim)
    throw py::value_error(std::string(name) + " has shape " + shape_text(array) + ", expected " + std::to_string(ndim) +
                          " axes");
  return array;
}

DType float_type(const py::array& array, const char* name) {
  const DType type = type_of(array);
  if (type == DType::none || type == DType::i8 || type == DType::boolean)
    wrong_type(array, name, "float32, float64, float16 or bfloat16");
  return type;
}

DType quantized_type(const py::array& array, const char* name) {
  if (type_of(array) != DType::i8) wrong_type(array, name, "int8 where it has scales");
  return DType::i8;
}

DType mask_type(const py::array& array, const char* name) {
  const DType type = type_of(array);
  if (type == DType::none || type == DType::i8) wrong_type(array, name, "bool, float32, float64, float16 or bfloat16");
  return type;
}

Strides strides_of(const py::array& array, Layout layout) {
  return {array.strides(0), array.strides(layout.head), array.strides(layout.token)};
}

void require_contiguous_channels(const py::array& array, const char* name) {
  const py::ssize_t last = array.ndim() - 1;
  if (array.size() > 0 && array.shape(last) > 1 && array.strides(last) != array.itemsize())
    throw py::value_error(std::string(name) + " must be contiguous along its last axis");
}

void require_output(const py::array& array, const char* name) {
  if (!array.writeable()) throw py::value_error(std::string(name) + " is read-only");
  std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;  // (|stride|, size)
  for (py::ssize_t i = 0; i < array.ndim(); i++) {
    if (array.shape(i) == 0) return;
    if (array.shape(i) > 1) axes.emplace_back(std::abs(array.strides(i)), array.shape(i));
  }
  std::sort(axes.begin(), axes.end());
  py::ssize_t reach = array.itemsize();
  for (const auto& [stride, size] : axes) {
    if (stride < reach) throw py::value_error(std::string(name) + " has elements that share memory");
    reach += stride * (size - 1);
  }
}

bool spans_overlap(const py::array& a, const py::array& b) {
  const auto [a_low, a_high] = span(a);
  const auto [b_low, b_high] = span(b);
  return a_low < b_high && b_low < a_high;
}

int64_t as_int(py::handle object, const char* name) {
  if (PyBool_Check(object.ptr()) || !PyIndex_Check(object.ptr()))
    throw py::type_error(std::string(name) + " must be an integer");
  const py::object number = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow) return overflow > 0 ? unbounded : -unbounded;
  return std::clamp(value, -unbounded, unbounded);
}

bool as_bool(py::handle object, const char* name) {
  if (!PyBool_Check(object.ptr())) throw py::type_error(std::string(name) + " must be True or False");
  return object.ptr() == Py_True;
}

double as_float(py::handle object, const char* name) {
  if (!PyFloat_Check(object.ptr()) && (!PyLong_Check(object.ptr()) || PyBool_Check(object.ptr())))
    throw py::type_error(std::string(name) + " must be a float");
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::value_error(std::string(name) + " is too large for a float");
  }
  return value;
}

int thread_count(py::handle num_threads) {
  if (num_threads.is_none()) return default_threads();
  const int64_t threads = as_int(num_threads, "num_threads");
  if (threads < 1) throw py::value_error("num_threads is " + std::to_string(threads) + ", expected at least 1");
  return int(std::min<int64_t>(threads, most_threads));
}

std::string shape_text(const py::array& array) {
  return py::str(py::reinterpret_borrow<py::object>(array).attr("shape")).cast<std::string>();
}

}  // namespace gqa
