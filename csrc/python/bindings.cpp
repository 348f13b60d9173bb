// bindings.cpp: the extension module gqa._core.
#include "bindings.h"

#include <pybind11/stl.h>

#include "../dispatch.h"
#include "../plan.h"
#include "../threads.h"
#include "types.h"

#if defined(GQA_XLA)
#include "../xla/handler.h"
#endif

namespace gqa {

// init.cpp lets Python in.
PYBIND11_MODULE(core, m, py::mod_gil_not_used()) {
  m.doc() = "The native kernels of gqa.";
  set_package(m);
  bind_attention(m);
  bind_views(m);
  bind_gradients(m);
  bind_program(m);
  bind_pages(m);
  bind_quantization(m);
  bind_rotary(m);
  bind_scalars(m);
  bind_shard(m);
  bind_slots(m);
  bind_states(m);
  m.def("available_isas", &available_isas);
  m.def("isa", [] { return std::string(active_kernels().name); });
  m.def("use_isa", &use_isa);
  m.def("default_threads", &default_threads_now);
  m.def("set_threads", &set_threads);
  m.def("has_openmp", &has_openmp);
#if defined(GQA_XLA)
  m.attr("XLA_ATTENTION") = xla_attention();
  m.attr("XLA_GRADIENTS") = xla_gradients();
#else
  m.attr("XLA_ATTENTION") = py::none();
  m.attr("XLA_GRADIENTS") = py::none();
#endif
  m.attr("SPLIT_KEYS") = many_rows_split_keys;
  m.attr("__version__") = GQA_VERSION;
}

}  // namespace gqa
