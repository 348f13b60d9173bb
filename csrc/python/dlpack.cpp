#include "dlpack.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <string>

#include "refusals.h"

namespace gqa {
namespace {

// ---- the protocol's structures, version 1 ----

enum Device : int32_t { cpu = 1, cuda_host = 3, rocm_host = 11 };
enum Code : uint8_t { code_int, code_uint, code_float, code_handle, code_bfloat, code_complex, code_bool };

struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t axes;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;  // in elements; strides null: C-contiguous
  uint64_t byte_offset;
};

struct Managed {
  DLTensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct Versioned {
  uint32_t major, minor;
  void* context;
  void (*deleter)(Versioned*);
  uint64_t flags;
  DLTensor tensor;
};
constexpr uint64_t flag_read_only = 1;

// The functions of a library that hand out tensors without a call of Python, which their type has in a capsule.
struct ExchangeApi {
  uint32_t major, minor;
  const void* earlier;
  int (*allocate)(DLTensor*, Versioned**, void*, void (*)(void*, const char*, const char*));
  int (*managed_from_object)(void* object, Versioned** managed);  // -1: and an exception is set
  int (*object_from_managed)(Versioned*, void**);
  int (*tensor_from_object)(void*, DLTensor*);
  int (*current_stream)(int32_t, int32_t, void**);
};

// ---- reading them ----

template <class M> void destroy(PyObject* capsule) {
  M* const managed = static_cast<M*>(PyCapsule_GetPointer(capsule, nullptr));
  if (managed->deleter) managed->deleter(managed);
}

// Takes the tensor out of a producer's capsule, which must not be used again; the object returned owns it.
template <class M> M* take(PyObject* capsule, const char* name, const char* used, py::object& owner) {
  M* const managed = static_cast<M*>(PyCapsule_GetPointer(capsule, name));
  if (!managed) throw py::error_already_set();
  owner = py::reinterpret_steal<py::object>(PyCapsule_New(managed, nullptr, nullptr));
  if (!owner || PyCapsule_SetName(capsule, used) != 0 || PyCapsule_SetDestructor(owner.ptr(), &destroy<M>) != 0)
    throw py::error_already_set();
  return managed;
}

DType type_of(const DLTensor& t) {
  if (t.lanes != 1) return DType::none;
  switch (t.code) {
    case code_float:
      return t.bits == 32 ? DType::f32 : t.bits == 64 ? DType::f64 : t.bits == 16 ? DType::f16 : DType::none;
    case code_bfloat: return t.bits == 16 ? DType::bf16 : DType::none;
    case code_int:
      return t.bits == 8    ? DType::i8
             : t.bits == 16 ? DType::i16
             : t.bits == 32 ? DType::i32
             : t.bits == 64 ? DType::i64
                            : DType::none;
    case code_uint:
      return t.bits == 8    ? DType::u8
             : t.bits == 16 ? DType::u16
             : t.bits == 32 ? DType::u32
             : t.bits == 64 ? DType::u64
                            : DType::none;
    case code_bool: return t.bits == 8 ? DType::boolean : DType::none;
    default: return DType::none;
  }
}

void write_name(const DLTensor& t, char (&name)[24]) {
  static constexpr const char* codes[] = {"int",   "uint",  "float", "handle", "bfloat", "complex",
                                          "bool",  "float", "float", "float",  "float",  "float",
                                          "float", "float", "float", "float",  "float",  "float"};
  if (t.code >= std::size(codes)) std::snprintf(name, sizeof name, "DLPack type %d", t.code);
  else if (t.lanes != 1) std::snprintf(name, sizeof name, "%s%dx%d", codes[t.code], t.bits, t.lanes);
  else if (t.code == code_bool) std::snprintf(name, sizeof name, "bool");
  else std::snprintf(name, sizeof name, "%s%d", codes[t.code], t.bits);
}

TensorView view_of(const DLTensor& t, bool writable) {
  TensorView view;
  view.data = static_cast<char*>(t.data) + t.byte_offset;
  view.axes = t.axes;
  view.type = type_of(t);
  view.writable = writable;
  const int axes = std::min(view.axes, max_axes);
  std::copy_n(t.shape, axes, view.shape);
  int64_t stride = t.bits / 8;
  for (int i = axes - 1; i >= 0; i--) {
    view.strides[i] = t.strides ? t.strides[i] * (t.bits / 8) : stride;
    stride *= t.shape[i];
  }
  return view;
}

bool is_on_cpu(int64_t device) { return device == cpu || device == cuda_host || device == rocm_host; }

[[noreturn]] void refuse_device(int64_t type, int64_t id, const char* name) {
  static constexpr const char* names[] = {"", "cpu", "cuda", "cuda_host", "opencl", "", "", "vulkan", "metal"};
  const bool known = type >= 0 && type < int64_t(std::size(names)) && *names[type];
  refuse(Rule::device, name,
         py::str((known ? names[type] : "DLPack device " + std::to_string(type)) + ":" + std::to_string(id)));
}

[[noreturn]] void refuse_exchange(const char* name, PyObject* object, const py::object& reason) {
  refuse(Rule::exchange, name, py::make_tuple(py::reinterpret_borrow<py::object>(object), reason));
}

// What the object's own functions return; what they raise is the cause of a refusal.
template <class F> py::object produced(PyObject* object, const char* name, const F& ask) {
  py::object reason;
  try {
    return ask();
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;  // KeyboardInterrupt and the like
    reason = error.value();
  } catch (const py::builtin_exception& error) {
    reason = py::str(error.what());
  }
  refuse_exchange(name, object, reason);
}

bool is_negated(PyObject* object) {
  const py::object type = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(Py_TYPE(object)));
  const py::object method = py::getattr(type, "is_neg", py::none());
  return !method.is_none() && method(py::handle(object)).cast<bool>();
}

py::object call_dlpack(PyObject* object) {
  const py::object method = py::reinterpret_steal<py::object>(PyObject_GetAttrString(object, "__dlpack__"));
  if (!method) throw py::error_already_set();
  try {
    return method(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {  // producers of before version 1 take no such argument
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method();
}

// Of a type that has them itself: a subclass may stand for tensors that are not in memory, and says so in Python.
const ExchangeApi* exchange_api_of(PyTypeObject* type) {
  struct Known {
    PyTypeObject* type;
    const ExchangeApi* api;
  };
  static std::atomic<const Known*> first{nullptr};  // found once; its type is never given up
  const Known* const known = first.load(std::memory_order_acquire);
  if (known && known->type == type) return known->api;
  const py::handle object(reinterpret_cast<PyObject*>(type));
  if (!py::object(object.attr("__dict__")).contains("__dlpack_c_exchange_api__")) return nullptr;
  const py::object capsule = object.attr("__dlpack_c_exchange_api__");
  constexpr char name[] = "dlpack_exchange_api";
  if (!PyCapsule_IsValid(capsule.ptr(), name)) return nullptr;
  const auto* const api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (api->major != 1) return nullptr;
  if (!known) {
    const auto* const made = new Known{type, api};
    const Known* none = nullptr;
    if (first.compare_exchange_strong(none, made)) object.inc_ref();
    else delete made;
  }
  return api;
}

// Whether an attribute of PyTorch's tensors is true.
bool is_true(PyObject* object, const char* attribute) {
  const py::object value = py::reinterpret_steal<py::object>(PyObject_GetAttrString(object, attribute));
  if (!value) PyErr_Clear();
  return value && value.ptr() == Py_True;
}

// By functions of C, a twentieth of the time; no owner where those do not hand it out, or `exchange` is to say why not.
Exchanged exchange_at_once(PyObject* object) {
  Exchanged result;
  const ExchangeApi* const api = exchange_api_of(Py_TYPE(object));
  if (!api || is_true(object, "requires_grad") || is_negated(object)) return result;
  Versioned* managed = nullptr;
  if (api->managed_from_object(object, &managed) != 0 || !managed) {
    PyErr_Clear();
    return result;
  }
  const auto release = [](PyObject* capsule) {
    auto* const held = static_cast<Versioned*>(PyCapsule_GetPointer(capsule, nullptr));
    if (held->deleter) held->deleter(held);
  };
  py::object owner = py::reinterpret_steal<py::object>(PyCapsule_New(managed, nullptr, release));
  if (!owner) {
    if (managed->deleter) managed->deleter(managed);
    throw py::error_already_set();
  }
  result.view = view_of(managed->tensor, !(managed->flags & flag_read_only));
  const bool in_memory = managed->tensor.data || !result.view.has_elements();
  if (managed->major != 1 || !is_on_cpu(managed->tensor.device_type) || !in_memory) return result;
  write_name(managed->tensor, result.type_name);
  result.owner = std::move(owner);
  return result;
}

}  // namespace

bool is_exchangeable(PyObject* object) {
  // Of its type, so that no object's __getattr__ is asked.
  PyObject* const method = PyObject_GetAttrString(reinterpret_cast<PyObject*>(Py_TYPE(object)), "__dlpack__");
  if (!method) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
    PyErr_Clear();
    return false;
  }
  Py_DECREF(method);
  return true;
}

Exchanged exchange(PyObject* object, const char* name) {
  if (Exchanged result = exchange_at_once(object); result.owner) return result;
  int64_t device_type, device_id;
  const py::object capsule = produced(object, name, [&] {
    const py::tuple device = py::reinterpret_borrow<py::object>(object).attr("__dlpack_device__")();
    device_type = py::int_(device[0]), device_id = py::int_(device[1]);
    if (!is_on_cpu(device_type)) return py::object(py::none());
    if (is_negated(object))  // PyTorch hands out the numbers that are in memory
      throw py::value_error("it stands for the negative of what is in its memory, use tensor.resolve_neg()");
    return call_dlpack(object);
  });
  if (!is_on_cpu(device_type)) refuse_device(device_type, device_id, name);

  Exchanged result;
  const DLTensor* tensor;
  bool writable = false;  // before version 1 nobody says
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const Versioned* managed =
        take<Versioned>(capsule.ptr(), "dltensor_versioned", "used_dltensor_versioned", result.owner);
    if (managed->major != 1) refuse_exchange(name, object, py::str("DLPack version " + std::to_string(managed->major)));
    tensor = &managed->tensor;
    writable = !(managed->flags & flag_read_only);
  } else {
    tensor = &take<Managed>(capsule.ptr(), "dltensor", "used_dltensor", result.owner)->tensor;
  }
  if (!is_on_cpu(tensor->device_type)) refuse_device(tensor->device_type, tensor->device_id, name);
  result.view = view_of(*tensor, writable);
  if (!tensor->data && result.view.has_elements())
    refuse_exchange(name, object, py::str("it has no memory, as tensors that stand for others do not"));
  write_name(*tensor, result.type_name);
  return result;
}

}  // namespace gqa
