#include "views.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "arrays.h"
#include "bindings.h"
#include "dlpack.h"
#include "refusals.h"
#include "types.h"

namespace gqa {
namespace {

// NumPy's numbers for its own types; bfloat16 is registered by another package, under a number found at run time.
constexpr int num_bool = 0, num_int8 = 1, num_uint64 = 10, num_float32 = 11, num_float64 = 12, num_float16 = 23,
              first_user_num = 256;
constexpr DType all_types[] = {DType::f32, DType::f64, DType::f16, DType::bf16, DType::i8,  DType::boolean, DType::i16,
                               DType::i32, DType::i64, DType::u8,  DType::u16,  DType::u32, DType::u64};

py::object borrowed(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

bool is_bfloat16(const py::dtype& type) {
  static std::atomic<int> known{-1};
  const int num = type.num();
  if (num < first_user_num) return false;
  if (num == known.load(std::memory_order_relaxed)) return true;
  if (type.attr("name").cast<std::string>() != "bfloat16") return false;
  known = num;
  return true;
}

DType type_named(const std::string& name) {
  for (const DType type : all_types)
    if (name == name_of(type)) return type;
  return DType::none;
}

bool fits(DType type, Role role) {
  if (role == Role::captured) return type != DType::none;
  return is_float(type) || (type == DType::boolean && role == Role::mask);
}

// NumPy numbers its integers by the names of C's types, whose sizes differ between platforms.
DType integer_of(const py::dtype& type) {
  static constexpr DType types[][2] = {
      {DType::i8, DType::u8}, {DType::i16, DType::u16}, {DType::i32, DType::u32}, {DType::i64, DType::u64}};
  const auto bytes = type.itemsize();
  const int log2 = bytes == 8 ? 3 : bytes == 4 ? 2 : bytes == 2 ? 1 : 0;
  return types[log2][type.num() % 2 == 0];
}

// type_name: what is said of the type; the dtype itself, or its name.
void require_type(DType type, Role role, const char* name, const py::object& type_name) {
  if (!fits(type, role)) refuse(role == Role::mask ? Rule::mask_dtype : Rule::float_dtype, name, type_name);
}

}  // namespace

DType type_of(const py::dtype& type) {
  switch (type.num()) {
    case num_float32: return DType::f32;
    case num_float64: return DType::f64;
    case num_float16: return DType::f16;
    case num_int8: return DType::i8;
    case num_bool: return DType::boolean;
    default:
      if (type.num() > num_int8 && type.num() <= num_uint64) return integer_of(type);
      return is_bfloat16(type) ? DType::bf16 : DType::none;
  }
}

bool is_array(PyObject* object) {
  return py::isinstance<py::array>(object) && (Py_TYPE(object) == py::detail::npy_api::get().PyArray_Type_ ||
                                               !PyType_IsSubtype(Py_TYPE(object), types().masked_array));
}

bool is_quantized(PyObject* object) { return PyType_IsSubtype(Py_TYPE(object), types().quantized); }

TensorView view_of(const py::array& array) {
  TensorView view;
  view.data = static_cast<char*>(const_cast<void*>(array.data()));
  view.axes = int(array.ndim());
  view.type = type_of(array.dtype());
  view.writable = array.writeable();
  const int axes = std::min(view.axes, max_axes);
  std::copy_n(array.shape(), axes, view.shape);
  std::copy_n(array.strides(), axes, view.strides);
  return view;
}

TensorView Views::numpy_view(PyObject* object, const char* name, Role role) {
  const py::array array = py::reinterpret_borrow<py::array>(object);
  const TensorView view = view_of(array);
  if (array.dtype().byteorder() == '>') refuse(Rule::byte_order, name, array.dtype());
  if (!fits(view.type, role)) require_type(view.type, role, name, array.dtype());
  return view;
}

TensorView Views::view(PyObject* object, const char* name, Role role) {
  if (object == Py_None) return {};
  if (is_array(object)) return numpy_view(object, name, role);
  if (described_ && PyTuple_CheckExact(object)) {
    bool quantized = false;
    const TensorView view = described_view(object, name, role, quantized);
    if (quantized) refuse(Rule::quantized, name);
    return view;
  }
  if (py::isinstance<py::array>(object) || !is_exchangeable(object)) refuse(Rule::tensor_kind, name, borrowed(object));
  Exchanged exchanged = exchange(object, name);
  if (!fits(exchanged.view.type, role)) require_type(exchanged.view.type, role, name, py::str(exchanged.type_name));
  owners_.push_back(std::move(exchanged.owner));
  return exchanged.view;
}

Tensor Views::tensor(PyObject* object, const char* name) {
  Tensor tensor;
  tensor.name = name;
  if (is_array(object)) {
    tensor.data = numpy_view(object, name, Role::floats);
  } else if (is_quantized(object)) {
    // Attributes may be replaced while the call runs: the arrays are held here.
    const py::array data = array_of(borrowed(object).attr("data").ptr(), name),
                    scale = array_of(borrowed(object).attr("scale").ptr(), name);
    tensor.data = view_of(data), tensor.scale = view_of(scale);
    if (tensor.data.type != DType::i8 || tensor.scale.type != DType::f32 || scale.dtype().byteorder() == '>')
      refuse(Rule::scale_dtype, name, py::make_tuple(data.dtype(), scale.dtype()));
    owners_.push_back(data), owners_.push_back(scale);
  } else if (described_ && PyTuple_CheckExact(object)) {
    bool quantized = false;
    tensor.data = described_view(object, name, Role::floats, quantized);
    if (quantized) {
      tensor.scale = tensor.data;
      tensor.scale.axes--;
    }
  } else {
    tensor.data = view(object, name, Role::floats);
  }
  return tensor;
}

// A tuple (shape, name of the dtype), made by gqa.infer_shapes.
TensorView Views::described_view(PyObject* description, const char* name, Role role, bool& quantized) {
  const auto [shape, dtype] = py::reinterpret_borrow<py::tuple>(description).cast<std::pair<py::tuple, std::string>>();
  TensorView view;
  view.axes = int(shape.size());
  for (int i = 0; i < std::min(view.axes, max_axes); i++) view.shape[i] = shape[size_t(i)].cast<int64_t>();
  quantized = dtype == "quantized" && view.axes > 0;
  view.type = quantized ? DType::i8 : type_named(dtype);
  if (!quantized) require_type(view.type, role, name, py::str(dtype));
  return view;
}

py::dtype dtype_of(DType type) {
  if (type == DType::bf16) return py::dtype::from_args(bfloat16_dtype());
  return py::dtype(name_of(type));
}

py::array array_of(PyObject* object, const char* name) {
  if (is_array(object)) return py::reinterpret_borrow<py::array>(object);
  if (py::isinstance<py::array>(object) || !is_exchangeable(object)) refuse(Rule::tensor_kind, name, borrowed(object));
  const Exchanged exchanged = exchange(object, name);
  const TensorView& view = exchanged.view;
  if (view.axes > max_axes) refuse(Rule::tensor_kind, name, borrowed(object));
  const py::dtype dtype = view.type == DType::none ? py::dtype(std::string(exchanged.type_name)) : dtype_of(view.type);
  py::array array(dtype, std::vector<py::ssize_t>(view.shape, view.shape + view.axes),
                  std::vector<py::ssize_t>(view.strides, view.strides + view.axes), view.data, exchanged.owner);
  if (!view.writable) array.attr("flags").attr("writeable") = false;
  return array;
}

namespace {

// The numbers of those of `others`, arrays or None, that share a byte with x, or may do so.
std::vector<size_t> sharing_memory(const py::array& x, const py::tuple& others) {
  std::vector<size_t> found;
  for (size_t i = 0; i < others.size(); i++) {
    const py::handle other = PyTuple_GET_ITEM(others.ptr(), py::ssize_t(i));
    if (other.is_none()) continue;
    if (!py::isinstance<py::array>(other)) throw py::type_error("others must be NumPy arrays or None");
    if (share_memory(x, py::reinterpret_borrow<py::array>(other))) found.push_back(i);
  }
  return found;
}

}  // namespace

void bind_views(py::module_& m) {
  m.def("as_array", [](const char* name, py::handle x) { return array_of(x.ptr(), name); });
  m.def("sharing_memory", &sharing_memory, py::arg("x").noconvert(), py::arg("others"));
}

}  // namespace gqa
