#include "types.h"

#include <pybind11/gil_safe_call_once.h>

#include <string>

namespace gqa {
namespace {

std::string& package() {
  static std::string name;
  return name;
}

}  // namespace

const Types& types() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Types> storage;
  return storage
      .call_once_and_store_result([] {
        const auto type = [](const py::module_& module, const char* name) {
          return reinterpret_cast<PyTypeObject*>(py::object(module.attr(name)).release().ptr());
        };
        const py::module_ numpy = py::module_::import("numpy");
        return Types{type(numpy, "bool_"), type(py::module_::import("numpy.ma"), "MaskedArray"),
                     type(sibling("quantization"), "Quantized"), numpy.attr("asarray")};
      })
      .get_stored();
}

void set_package(const py::module_& extension) {
  const auto name = extension.attr("__name__").cast<std::string>();
  package() = name.substr(0, name.rfind('.'));
}

py::module_ sibling(const char* name) { return py::module_::import((package() + "." + name).c_str()); }

py::object bfloat16_dtype() { return sibling("dtypes").attr("dtype_named")("bfloat16"); }

}  // namespace gqa
