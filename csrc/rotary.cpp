#include "rotary.h"

#include "dispatch.h"

namespace gqa {

void rotate(const Rotary& rotary) {
  const Kernels& kernels = active_kernels();
  kernels[rotary.type == DType::f64 ? Arithmetic::f64 : Arithmetic::f32].rotate(rotary);
}

}  // namespace gqa
