// bindings.h: the parts of the extension module, each of which adds its own functions.
#pragma once

#include <pybind11/pybind11.h>

namespace gqa {

void bind_rotary(pybind11::module_& m);
void bind_states(pybind11::module_& m);

}  // namespace gqa
