// handler.cpp: XLA's buffers and attributes as those of a MappedCall. XLA calls it from any thread, without the GIL.
#include "handler.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <string>

#include "../python/refusals.h"
#include "../threads.h"
#include "mapped_call.h"
#include "xla/ffi/api/ffi.h"

namespace gqa {
namespace {

namespace ffi = xla::ffi;

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

// False if the buffer's type is of none that the operand may have.
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

// The sentence for a refusal, which gqa has in Python.
std::string message_of(const Refusal& refusal) {
  const py::gil_scoped_acquire gil;
  try {
    raise(refusal);
  } catch (py::error_already_set& error) {
    return py::str(error.value()).cast<std::string>();
  }
}

// own_axes: of each operand, without those that vmap put in front; -1 for one that is not among the arguments.
// scale NaN: the default. num_threads 0: the default.
ffi::Error attend(ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Span<const int64_t> own_axes,
                  bool tokens_first, bool causal, ffi::Span<const int64_t> window, double scale, double softcap,
                  int64_t num_threads) {
  const ffi::Error malformed = ffi::Error::InvalidArgument("the operands are not those of gqa.jax.attention");
  if (own_axes.size() != operand_count || window.size() != 2 || results.size() < 1 || results.size() > 2)
    return malformed;
  Buffer operands[operand_count], outputs[2];
  size_t next = 0;
  for (int i = 0; i < operand_count; i++) {
    if (own_axes.begin()[i] < 0) continue;
    const auto argument = arguments.get<ffi::AnyBuffer>(next++);
    if (!argument.has_value() || !read(argument.value(), own_axes.begin()[i], Operand(i), operands[i]))
      return malformed;
  }
  for (size_t i = 0; i < results.size(); i++) {
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!result.has_value() || !read(*result.value(), operands[q].own_axes - int64_t(i), q, outputs[i]))
      return malformed;
  }

  Options options;
  options.layout = tokens_first ? bshd : bhsd;
  options.causal = causal;
  options.left = window.begin()[0], options.right = window.begin()[1];
  options.default_scale = std::isnan(scale);
  options.scale = scale;
  options.softcap = softcap;
  options.return_lse = outputs[1].given();
  options.out_type = outputs[0].type == operands[q].type ? DType::none : outputs[0].type;
  options.threads = num_threads < 1 ? default_threads() : int(std::min<int64_t>(num_threads, max_threads));
  MappedCall call(options, operands, outputs[0], outputs[1]);
  if (next != arguments.size() || !call.is_well_formed()) return malformed;
  try {
    return call.run() ? ffi::Error::Success() : ffi::Error::InvalidArgument(message_of(call.refusal()));
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory");
  }
}

XLA_FFI_DEFINE_HANDLER(handler, attend,
                       ffi::Ffi::Bind()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<ffi::Span<const int64_t>>("own_axes")
                           .Attr<bool>("tokens_first")
                           .Attr<bool>("causal")
                           .Attr<ffi::Span<const int64_t>>("window")
                           .Attr<double>("scale")
                           .Attr<double>("softcap")
                           .Attr<int64_t>("num_threads"));

}  // namespace

py::capsule xla_attention() { return py::capsule(reinterpret_cast<void*>(handler)); }

}  // namespace gqa
