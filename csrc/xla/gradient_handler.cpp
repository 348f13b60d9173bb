// gradient_handler.cpp: the backward pass as a custom call of XLA.
#include "arguments.h"
#include "handler.h"
#include "mapped_gradient.h"

namespace gqa {
namespace {

constexpr size_t given_count = 4;

// own_axes: of dout, out, lse and dlse, and then of each operand; -1 for one that is not among the arguments. The
// results are dq, dk, dv, and those of dmask and dsinks that are wanted.
ffi::Error differentiate(ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Span<const int64_t> own_axes,
                         bool mask_grad, bool sinks_grad, bool tokens_first, bool causal,
                         ffi::Span<const int64_t> window, double scale, double softcap, int64_t num_threads) {
  const ffi::Error malformed = ffi::Error::InvalidArgument("the operands are not those of gqa.jax's gradients");
  if (own_axes.size() != given_count + operand_count || window.size() != 2 ||
      results.size() != size_t(3 + mask_grad + sinks_grad))
    return malformed;
  Buffer operands[operand_count];
  GivenBuffers given;
  Buffer* const givens[given_count] = {&given.dout, &given.out, &given.lse, &given.dlse};
  size_t next = 0;
  for (size_t i = 0; i < given_count; i++) {
    if (own_axes.begin()[i] < 0) {
      if (i < 3) return malformed;
      continue;
    }
    const auto argument = arguments.get<ffi::AnyBuffer>(next++);
    if (!argument.has_value() || !read(argument.value(), own_axes.begin()[i], q, *givens[i])) return malformed;
  }
  if (!read_operands(arguments, own_axes.begin() + given_count, next, operands)) return malformed;

  GradientBuffers gradients;
  Buffer* wanted[5] = {&gradients.dq, &gradients.dk, &gradients.dv};
  Operand like[5] = {q, k, v};
  size_t count = 3;
  if (mask_grad) like[count] = mask, wanted[count++] = &gradients.dmask;
  if (sinks_grad) like[count] = sinks, wanted[count++] = &gradients.dsinks;
  for (size_t i = 0; i < count; i++) {
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!result.has_value() || !read(*result.value(), operands[like[i]].own_axes, like[i], *wanted[i]))
      return malformed;
  }
  const Options options = options_of(tokens_first, causal, window, scale, softcap, num_threads);
  MappedGradient call(options, operands, given, gradients);
  if (next != arguments.size() || !call.is_well_formed()) return malformed;
  return answer(call);
}

XLA_FFI_DEFINE_HANDLER(handler, differentiate,
                       ffi::Ffi::Bind()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<ffi::Span<const int64_t>>("own_axes")
                           .Attr<bool>("mask_grad")
                           .Attr<bool>("sinks_grad")
                           .Attr<bool>("tokens_first")
                           .Attr<bool>("causal")
                           .Attr<ffi::Span<const int64_t>>("window")
                           .Attr<double>("scale")
                           .Attr<double>("softcap")
                           .Attr<int64_t>("num_threads"));

}  // namespace

pybind11::capsule xla_gradients() { return pybind11::capsule(reinterpret_cast<void*>(handler)); }

}  // namespace gqa
