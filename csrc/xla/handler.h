// handler.h: attention as a custom call of XLA, for gqa.jax. Built only where jaxlib's headers are (CMakeLists.txt).
#pragma once

#include <pybind11/pybind11.h>

namespace gqa {

// What jax.ffi.register_ffi_target takes.
pybind11::capsule xla_attention();
pybind11::capsule xla_gradients();

}  // namespace gqa
