#include "arrays.h"

#include <algorithm>
#include <utility>

#include "views.h"

namespace gqa {
namespace {

// Every byte of an array, whatever its type.
TensorView bytes_of(const py::array& array) {
  TensorView view = view_of(array);
  view.type = DType::i8;
  if (view.axes < max_axes) view.shape[view.axes] = array.itemsize(), view.strides[view.axes] = 1;
  view.axes++;
  return view;
}

// First and last byte, end exclusive, of the memory that an array spans; of what spans too much, anything.
std::pair<intptr_t, intptr_t> span(const py::array& array) {
  intptr_t low = reinterpret_cast<intptr_t>(array.data()), high = low;
  for (py::ssize_t i = 0; i < array.ndim(); i++) {
    if (array.shape(i) == 0) return {low, low};
    intptr_t reach;
    if (__builtin_mul_overflow(array.shape(i) - 1, array.strides(i), &reach) ||
        (reach < 0 ? __builtin_add_overflow(low, reach, &low) : __builtin_add_overflow(high, reach, &high)))
      return {INTPTR_MIN, INTPTR_MAX};
  }
  return {low, high + array.itemsize()};
}

}  // namespace

py::array as_array(py::handle object, const char* name, int ndim) {
  if (!is_array(object.ptr())) throw py::type_error(std::string(name) + " must be a NumPy array");
  py::array array = py::reinterpret_borrow<py::array>(object);
  if (array.ndim() != ndim)
    throw py::value_error(std::string(name) + " has shape " + shape_text(array) + ", expected " + std::to_string(ndim) +
                          " axes");
  return array;
}

DType float_type(const py::array& array, const char* name) {
  const DType type = array.dtype().byteorder() == '>' ? DType::none : type_of(array.dtype());
  if (!is_float(type))
    throw py::type_error(std::string(name) + " has dtype " + py::str(array.dtype()).cast<std::string>() +
                         ", expected float32, float64, float16 or bfloat16");
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
  if (!has_distinct_elements(array.shape(), array.strides(), int(array.ndim()), array.itemsize()))
    throw py::value_error(std::string(name) + " has elements that share memory");
}

bool share_memory(const py::array& a, const py::array& b) {
  const auto [a_low, a_high] = span(a);
  const auto [b_low, b_high] = span(b);
  return a_low < b_high && b_low < a_high && share_memory(bytes_of(a), bytes_of(b));
}

std::string shape_text(const py::array& array) {
  return py::str(py::reinterpret_borrow<py::object>(array).attr("shape")).cast<std::string>();
}

}  // namespace gqa
