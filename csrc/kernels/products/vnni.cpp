// products/vnni.cpp: products of integers with AVX-512 VNNI, whose instructions multiply and add at the rate of
// float's, two 16-bit products, or four of bytes, in each lane.
//
// Q.K is the code of integers.h, compiled for them. For P.V, weights become whole numbers of 24 bits, in units of the
// largest of the block and row. Each is off by up to half a unit, all in one direction if they are equal: so where one
// weight exceeds the average by far, as a sink's does, values are widened instead. The three bytes of the weights are
// multiplied with the values of four keys at a time, and the sums, which are exact, put together at the end of the
// block. That takes 0.83 of the time of widening values to float.
#include <immintrin.h>

#include "../kernel.h"
#include "integers.h"

namespace gqa {
namespace avx512 {
extern const Kernels kernels;
}
namespace GQA_ISA {
namespace {

constexpr int terms = 3, four = 4;  // bytes of a weight; keys that one instruction takes
// The largest weight, in averages: it bounds what rounding adds to a mean of values by most_uneven * 2^-25 of the
// largest value, 2e-6. Weights of unit-normal scores stay below 30.
constexpr float most_uneven = 64;
constexpr float max_weight = 0xfffff0;  // so that no rounding makes it 2^24
constexpr int chunk = 64;               // channels: one load of each key
constexpr int keys_at_once = 128;       // whose lines stay in L1 until all chunks took them
constexpr int lanes = 16;

constexpr int rows_into_l1 = 16;  // how far ahead

// Vectors of 16 channels whose sums are in registers at once, for each row and term.
template <int R> constexpr int parts = R > 2 ? 2 : 4;

int64_t sums_of(int64_t channels, int rows) { return (channels + chunk - 1) / chunk * (chunk / lanes) * rows * terms; }

// Sums, [chunk][half][row][term][vector], and weights as bytes, [four keys][term][row][key].
struct Room {
  uint8_t* weights;
  int32_t* sums;

  Room(char* scratch, int64_t channels, int rows)
      : weights(reinterpret_cast<uint8_t*>(scratch + sums_of(channels, rows) * 64)),
        sums(reinterpret_cast<int32_t*>(scratch)) {}
};
int64_t scratch_bytes(int64_t channels, int keys) { return sums_of(channels, 4) * 64 + (keys + lanes) * 4 * 4; }

// Where byte i of 16 weights of 32 bits, [key][row], comes from to lie as [four keys][term][row][key].
template <int R> __m512i order_of_bytes() {
  uint8_t from[64];
  for (int i = 0; i < 64; i++) {
    const int key = i % 4, row = i / 4 % R, term = i / (4 * R) % 4, group = i / (16 * R);
    from[i] = uint8_t(((group * 4 + key) * R + row) * 4 + term);
  }
  return _mm512_loadu_si512(from);
}

// Weights of `count` keys as bytes, and the unit of each row in the lanes of its number; false: not whole numbers of
// it.
template <int R> bool weights_to_bytes(const float* p, int count, uint8_t* bytes, float (&unit)[R]) {
  const int total = count * R;
  Vec<float> top{}, sum{};
  __mmask16 good = 0xffff;
  for (int i = 0; i < total; i += lanes) {
    const __m512 x = _mm512_maskz_loadu_ps(__mmask16(total - i >= lanes ? 0xffff : (1 << (total - i)) - 1), p + i);
    good &= _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
    top = max(bits<Vec<float>>(x), top);
    sum += bits<Vec<float>>(x);
  }
  top = fold<float, R>(top, [](Vec<float> x, Vec<float> y) { return max(x, y); });
  sum = fold<float, R>(sum, [](Vec<float> x, Vec<float> y) { return x + y; });
  Vec<float> inverse{};
  for (int l = 0; l < lanes; l++) {
    if (top[l] == 0) continue;
    if (!(top[l] > 1e-30f && top[l] < 1e30f) || float(count) * top[l] > most_uneven * sum[l]) return false;
    inverse[l] = max_weight / top[l];
  }
  if (good != 0xffff) return false;
  for (int r = 0; r < R; r++) unit[r] = top[r] / max_weight;
  const __m512i order = order_of_bytes<R>();
  for (int i = 0; i < total; i += lanes) {
    const __m512 x = _mm512_maskz_loadu_ps(__mmask16(total - i >= lanes ? 0xffff : (1 << (total - i)) - 1), p + i);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, bits<__m512>(inverse)));
    _mm512_storeu_si512(bytes + i * 4, _mm512_permutexvar_epi8(order, whole));
  }
  return true;
}

// Adds `fours` times four keys to the sums of a chunk's `parts<R>` vectors: those from the first half of each 16 bytes,
// from the second, or all. Lane 4 * i + j of vector v is channel 16 * i + 4 * v + j.
template <int R, bool whole>
void add_keys(const char* const* rows, int c, int fours, int half, __mmask64 loaded, const uint8_t* weights,
              int32_t* sums, Ahead ahead) {
  constexpr int V = parts<R>;
  __m512i sum[R][terms][V];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < terms; t++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) sum[r][t][v] = _mm512_loadu_si512(sums + ((r * terms + t) * V + v) * lanes);
  for (int i = 0; i < fours; i++, rows += four, weights += 16 * R) {
    __m512i x[four], value[V];
#pragma GCC unroll 4
    for (int j = 0; j < four; j++) {
      x[j] = whole ? _mm512_loadu_si512(rows[j] + c) : _mm512_maskz_loadu_epi8(loaded, rows[j] + c);
      if (half == 0) {
        prefetch(rows[j + rows_into_l1] + c);
        if (far<int8_t, R>(ahead)) prefetch_to_l2(rows[j + ahead.l2] + c);
      }
    }
    if (V == 4 || half == 0) {
      const __m512i a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpacklo_epi8(x[2], x[3]);
      value[0] = _mm512_unpacklo_epi16(a, b), value[1] = _mm512_unpackhi_epi16(a, b);
    }
    if (V == 4 || half == 1) {
      const __m512i a = _mm512_unpackhi_epi8(x[0], x[1]), b = _mm512_unpackhi_epi8(x[2], x[3]);
      value[V - 2] = _mm512_unpacklo_epi16(a, b), value[V - 1] = _mm512_unpackhi_epi16(a, b);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int t = 0; t < terms; t++) {
        const __m512i weight = _mm512_set1_epi32(read<int32_t>(weights + (t * R + r) * 4));
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[r][t][v] = _mm512_dpbusd_epi32(sum[r][t][v], weight, value[v]);
      }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int t = 0; t < terms; t++)
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) _mm512_storeu_si512(sums + ((r * terms + t) * V + v) * lanes, sum[r][t][v]);
}

// o += unit * sums, for one half of a chunk: its channels come in fours.
template <int R>
void end_chunk(const int32_t* sums, int first_part, int channels, const float (&unit)[R], float* o, int64_t stride) {
  constexpr int V = parts<R>;
  typedef float Four __attribute__((vector_size(16)));
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) {
      Vec<float> x{};
      for (int t = terms; t-- > 0;) x = x * 256.0f + to_floats(load(sums + ((r * terms + t) * V + v) * lanes));
      float fours[lanes];
      store(fours, x * unit[r]);
      for (int i = 0; i < 4; i++) {
        const int c = 16 * i + 4 * (first_part + v);
        if (c >= channels) break;
        float* const to = o + r * stride + c;
        write(to, read<Four>(to) + read<Four>(fours + 4 * i));
      }
    }
}

template <int R>
bool accumulate(const char* const* rows, int count, int channels, const float* p, float* o, int64_t stride,
                char* scratch) {
  constexpr int V = parts<R>, halves = 4 / V, size = R * terms * V * lanes;
  const Room room(scratch, channels, R);
  float unit[R];
  if (!weights_to_bytes<R>(p, count, room.weights, unit)) return false;
  memset(room.sums, 0, size_t(sums_of(channels, R)) * 64);
  const Ahead ahead = rows_ahead<int8_t, R>(channels, count);
  for (int from = 0; from < count; from += keys_at_once) {
    const int to = int(min(count, from + keys_at_once)), fours = (to - from) / four;
    for (int c = 0; c < channels; c += chunk) {
      const __mmask64 loaded = channels - c >= chunk ? ~__mmask64(0) : (__mmask64(1) << (channels - c)) - 1;
      for (int half = 0; half < halves; half++) {
        int32_t* const sums = room.sums + (c / chunk * halves + half) * size;
        const auto add = channels - c >= chunk ? add_keys<R, true> : add_keys<R, false>;
        add(rows + from, c, fours, half, loaded, room.weights + from * R * 4, sums, ahead);
      }
    }
  }
  for (int c = 0; c < channels; c += chunk)
    for (int half = 0; half < halves; half++)
      end_chunk<R>(room.sums + (c / chunk * halves + half) * size, half * V, int(stride - c), unit, o + c, stride);
  return true;
}

constexpr IntegerProducts integers = {{multiply_keys<1>, multiply_keys<2>, multiply_keys<4>},
                                      {accumulate<1>, accumulate<2>, accumulate<4>},
                                      scratch_bytes};

}  // namespace

#define GQA_TEXT(name) #name
#define GQA_NAME(name) GQA_TEXT(name)
extern const Kernels kernels;
constexpr Kernels kernels = {GQA_NAME(GQA_ISA), {}, nullptr, nullptr, &integers, &avx512::kernels};

}  // namespace GQA_ISA
}  // namespace gqa
