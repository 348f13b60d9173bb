#include "types.h"

#include <pybind11/gil_safe_call_once.h>

namespace gqa {

const Types& types() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Types> storage;
  return storage
      .call_once_and_store_result([] {
        const auto type = [](const char* module, const char* name) {
          return reinterpret_cast<PyTypeObject*>(py::object(py::module_::import(module).attr(name)).release().ptr());
        };
        return Types{type("numpy", "bool_"), type("numpy.ma", "MaskedArray"), type("gqa", "Quantized"),
                     py::module_::import("numpy").attr("asarray")};
      })
      .get_stored();
}

py::object bfloat16_dtype() { return py::module_::import("gqa.dtypes").attr("dtype_named")("bfloat16"); }

}  // namespace gqa
