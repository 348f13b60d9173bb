// tuning.h: what was found by measuring, for each width of vectors: the numbers that change no result's meaning, only
// its speed. (Those that change the order of additions, and with it the last bits, are in plan.h and keys.h.)
#pragma once

#include "vec.h"

namespace gqa {
namespace GQA_ISA {
namespace {

constexpr bool wide = vector_bytes == 64;

// How many bytes ahead rows of K and V are prefetched while R rows attend them, of elements of so many bytes. Into L1,
// a little: on the machines with AVX2 more of it makes decoding slower. Into L2, with vectors of 64 bytes: products
// take so little time there that a core's own prefetchers leave a part of the memory's rate unused. With 8 KiB,
// decoding from memory takes 0.88 to 0.94 of the time in types of one to four bytes (0.9 to 0.95 with 4 KiB, no better
// with 16), and as long as before from the last cache. One row of float32 has so few operations for each line that the
// instructions themselves show: 1.05 from the last cache, 0.95 from memory; there is none for it.
template <int bytes, int R> struct PrefetchOf {
  static constexpr bool far = wide && (R > 1 || bytes < 4);
  static constexpr int l1_bytes = far ? 1024 : 512, l2_bytes = far ? 8192 : 0;
};
// Keys that are in L2 already would only pay for the instructions: a few hundred of them are not prefetched.
constexpr int keys_worth_l2_prefetch = 512;

// Sums of P.V stay in registers for some keys, for a few vectors of channels at a time, rather than in memory for all
// channels, a few keys at a time: 0.8 to 0.97 of the time, where there are registers enough. Two rows are an exception,
// 1.2: their eight streams at once are what hides the latency of L2.
template <class T, int R> constexpr bool sums_in_registers = wide && sizeof(T) == 4 && R != 2;
template <int R> constexpr int vectors_in_registers = R > 2 ? 4 : 8;
constexpr int keys_between_chunks = 16;  // so few that what the first chunk of channels fetched is in L1 for the others

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
