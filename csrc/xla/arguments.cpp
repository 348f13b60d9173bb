#include "arguments.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "../python/refusals.h"
#include "../threads.h"

namespace gqa {
namespace {

DType float_or_bool(ffi::DataType type) {
  switch (type) {
    case ffi::F32: return DType::f32;
    case ffi::F64: return DType::f64;
    case ffi::F16: return DType::f16;
    case ffi::BF16: return DType::bf16;
    case ffi::PRED: return DType::boolean;
    default: return DType::none;
  }
}

// 0: no whole number.
int64_t bytes_of_integer(ffi::DataType type, bool& is_signed) {
  is_signed = type == ffi::S8 || type == ffi::S16 || type == ffi::S32 || type == ffi::S64;
  switch (type) {
    case ffi::S8:
    case ffi::U8: return 1;
    case ffi::S16:
    case ffi::U16: return 2;
    case ffi::S32:
    case ffi::U32: return 4;
    case ffi::S64:
    case ffi::U64: return 8;
    default: return 0;
  }
}

}  // namespace

bool read(const ffi::AnyBuffer& from, int64_t own_axes, Operand operand, Buffer& x) {
  x.data = static_cast<char*>(from.untyped_data());
  x.sizes = from.dimensions().begin();
  x.axes = int(from.dimensions().size());
  x.own_axes = int(own_axes);
  if (own_axes < 0 || own_axes > x.axes) return false;
  if (operand == query_offset || operand == kv_lengths) {
    x.bytes = bytes_of_integer(from.element_type(), x.is_signed);
    return x.bytes > 0;
  }
  x.type = float_or_bool(from.element_type());
  x.bytes = gqa::bytes_of(x.type);
  return x.type != DType::none && (operand == mask || x.type != DType::boolean);
}

bool read_operands(const ffi::RemainingArgs& arguments, const int64_t* own_axes, size_t& next,
                   Buffer (&operands)[operand_count]) {
  for (int i = 0; i < operand_count; i++) {
    if (own_axes[i] < 0) continue;
    const auto argument = arguments.get<ffi::AnyBuffer>(next++);
    if (!argument.has_value() || !read(argument.value(), own_axes[i], Operand(i), operands[i])) return false;
  }
  return true;
}

Options options_of(bool tokens_first, bool causal, ffi::Span<const int64_t> window, double scale, double softcap,
                   int64_t num_threads) {
  Options options;
  options.layout = tokens_first ? bshd : bhsd;
  options.causal = causal;
  options.left = window.begin()[0], options.right = window.begin()[1];
  options.default_scale = std::isnan(scale);
  options.scale = scale;
  options.softcap = softcap;
  options.threads = num_threads < 1 ? default_threads() : int(std::min<int64_t>(num_threads, max_threads));
  return options;
}

ffi::Error error_of(const Refusal& refusal) {
  const py::gil_scoped_acquire gil;
  try {
    raise(refusal);
  } catch (py::error_already_set& error) {
    return ffi::Error::InvalidArgument(py::str(error.value()).cast<std::string>());
  }
}

}  // namespace gqa
