// arguments.h: what XLA hands to a custom call, as buffers and options. XLA calls from any thread, without the GIL.
#pragma once

#include <string>

#include "mapped_operands.h"
#include "xla/ffi/api/ffi.h"

namespace gqa {

namespace ffi = xla::ffi;

// False if the buffer's type is of none that the operand may have, or if it has fewer axes than its own.
bool read(const ffi::AnyBuffer& from, int64_t own_axes, Operand operand, Buffer& x);

// The operands that come in order among the arguments from `next` on, which is moved behind them; own_axes: of each,
// without those that vmap put in front; -1 for one that is not among the arguments.
bool read_operands(const ffi::RemainingArgs& arguments, const int64_t* own_axes, size_t& next,
                   Buffer (&operands)[operand_count]);

// The options of a call. scale NaN: the default. num_threads 0: the default.
Options options_of(bool tokens_first, bool causal, ffi::Span<const int64_t> window, double scale, double softcap,
                   int64_t num_threads);

// The error for a refusal, in the words that gqa has for it in Python.
ffi::Error error_of(const Refusal& refusal);

// What a call that is well formed answers: call.run(), with its errors as those of XLA.
template <class MappedCall> ffi::Error answer(MappedCall& call) {
  try {
    return call.run() ? ffi::Error::Success() : error_of(call.refusal());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "out of memory");
  }
}

}  // namespace gqa
