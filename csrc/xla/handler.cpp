// handler.cpp: the forward call as a custom call of XLA.
#include "handler.h"

#include "arguments.h"
#include "mapped_call.h"

namespace gqa {
namespace {

ffi::Error attend(ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Span<const int64_t> own_axes,
                  bool tokens_first, bool causal, ffi::Span<const int64_t> window, double scale, double softcap,
                  int64_t num_threads) {
  const ffi::Error malformed = ffi::Error::InvalidArgument("the operands are not those of gqa.jax.attention");
  if (own_axes.size() != operand_count || window.size() != 2 || results.size() < 1 || results.size() > 2)
    return malformed;
  Buffer operands[operand_count], outputs[2];
  size_t next = 0;
  if (!read_operands(arguments, own_axes.begin(), next, operands)) return malformed;
  for (size_t i = 0; i < results.size(); i++) {
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!result.has_value() || !read(*result.value(), operands[q].own_axes - int64_t(i), q, outputs[i]))
      return malformed;
  }
  Options options = options_of(tokens_first, causal, window, scale, softcap, num_threads);
  options.return_lse = outputs[1].given();
  options.out_type = outputs[0].type == operands[q].type ? DType::none : outputs[0].type;
  MappedCall call(options, operands, outputs[0], outputs[1]);
  if (next != arguments.size() || !call.is_well_formed()) return malformed;
  return answer(call);
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

pybind11::capsule xla_attention() { return pybind11::capsule(reinterpret_cast<void*>(handler)); }

}  // namespace gqa
