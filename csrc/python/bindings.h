// bindings.h: the parts of the extension module gqa._core, each of which adds its own functions.
#pragma once

#include <pybind11/pybind11.h>

namespace gqa {

namespace py = pybind11;

void bind_attention(py::module_& m);
void bind_gradients(py::module_& m);
void bind_program(py::module_& m);
void bind_pages(py::module_& m);
void bind_quantization(py::module_& m);
void bind_rotary(py::module_& m);
void bind_scalars(py::module_& m);
void bind_shard(py::module_& m);
void bind_slots(py::module_& m);
void bind_states(py::module_& m);
void bind_views(py::module_& m);

}  // namespace gqa
