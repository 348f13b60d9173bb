#include "rotary.h"

#include <algorithm>

#include "dispatch.h"
#include "parallel.h"
#include "threads.h"

namespace gqa {

void rotate(const Rotary& r) {
  const KernelsOf& kernels = active_kernels()[r.type == DType::f64 ? Arithmetic::f64 : Arithmetic::f32];
  const int64_t tokens = r.batch * r.tokens;
  constexpr double bytes_per_us = 10e3;  // read and written by one thread
  const double bytes = 2.0 * double(tokens) * double(r.heads) * double(r.head_dim * bytes_of(r.type));
  const int threads = int(std::min<int64_t>(threads_worth(bytes / bytes_per_us, r.threads), tokens));
  if (threads <= 1) return kernels.rotate(r, 0, tokens);
  const int64_t pieces = std::min<int64_t>(4 * threads, tokens);  // a thread that is held up leaves some to the others
  parallel_for(pieces, threads,
               [&](int64_t i, int) { kernels.rotate(r, tokens * i / pieces, tokens * (i + 1) / pieces); });
}

}  // namespace gqa
