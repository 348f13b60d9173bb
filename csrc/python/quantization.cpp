// quantization.cpp: the extension's function `quantize`.
#include "../quantization.h"

#include "../dispatch.h"
#include "bindings.h"
#include "refusals.h"
#include "views.h"

namespace gqa {
namespace {

// x: floats in C order, of at least one axis; (data, scale) of gqa.Quantized. ValueError, which names x, if int8 cannot
// represent it.
py::tuple quantize(const char* name, const py::array& x) {
  const DType type = type_of(x.dtype());
  if (x.ndim() == 0 || !(x.flags() & py::array::c_style) || type == DType::none || type == DType::i8 ||
      type == DType::boolean)
    throw py::type_error("x must be an array of floats in C order");
  const std::vector<py::ssize_t> shape(x.shape(), x.shape() + x.ndim());
  py::array_t<int8_t> data(shape);
  py::array_t<float> scale(std::vector<py::ssize_t>(shape.begin(), shape.end() - 1));
  const int64_t channels = shape.back(), bytes = channels * bytes_of(type);
  const char* const from = static_cast<const char*>(x.data());
  auto* const to = reinterpret_cast<char*>(data.mutable_data());
  auto* const scales = reinterpret_cast<char*>(scale.mutable_data());
  bool finite = true;
  {
    py::gil_scoped_release release;
    const Kernels& kernels = active_kernels();
    for (int64_t i = 0; i < scale.size() && finite; i++)
      finite = kernels.quantize({from + i * bytes, type, channels, to + i * channels, scales + i * 4});
  }
  if (!finite) refuse(Rule::not_finite, name);
  return py::make_tuple(std::move(data), std::move(scale));
}

}  // namespace

void bind_quantization(py::module_& m) { m.def("quantize", &quantize, py::arg("name"), py::arg("x").noconvert()); }

}  // namespace gqa
