// vec.h: one SIMD register, and the few operations on it that the vector extensions of GCC and Clang lack.
//
// Below the watershed. The only file with intrinsics and with #ifs on the instruction set; everything else is written
// on `Vec<T>`, where arithmetic is operators and selection is `mask ? a : b`.
#pragma once

#include <stdint.h>
#include <string.h>

#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE4_2__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define GQA_INLINE inline __attribute__((always_inline))

namespace gqa {
namespace GQA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, registers = 32;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, registers = 16;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, registers = 32;
#else
constexpr int vector_bytes = 16, registers = 16;
#endif

template <class T> constexpr int width = vector_bytes / int(sizeof(T));  // lanes of one vector

template <class T> struct VecOf {
  typedef T type __attribute__((vector_size(vector_bytes)));
};
template <class T> using Vec = typename VecOf<T>::type;

template <int bytes> struct IntOf;
template <> struct IntOf<4> {
  using type = int32_t;
};
template <> struct IntOf<8> {
  using type = int64_t;
};
template <class T> using Int = typename IntOf<sizeof(T)>::type;  // the integer as wide as T

struct f16 {
  uint16_t bits;
};  // storage types: widened on load, rounded once on store
struct bf16 {
  uint16_t bits;
};

template <class To, class From> GQA_INLINE To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}

// ---- memory: addresses need no alignment ----------------------------------------------------------------------

template <class T> GQA_INLINE T read(const void* p) {
  T x;
  memcpy(&x, p, sizeof x);
  return x;
}
template <class T> GQA_INLINE void write(void* p, T x) { memcpy(p, &x, sizeof x); }
template <class T> GQA_INLINE Vec<T> load(const T* p) { return read<Vec<T>>(p); }
template <class T> GQA_INLINE void store(T* p, Vec<T> v) { write(p, v); }
template <class T> GQA_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}  // x + 0 would turn -0 into 0, so it costs an add

GQA_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
GQA_INLINE void prefetch_to_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

// ---- conversions of one element -------------------------------------------------------------------------------

GQA_INLINE float to_float(float x) { return x; }
GQA_INLINE float to_float(double x) { return float(x); }
GQA_INLINE float to_float(int8_t x) { return float(x); }
GQA_INLINE float to_float(bf16 x) { return bits<float>(uint32_t(x.bits) << 16); }
GQA_INLINE float to_float(f16 x) {
  // Exponent and fraction move into place; the product with 2^112 rebiases them, subnormals included.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  float y = bits<float>(magnitude) * 0x1p112f;
  if (magnitude >= 0x7c00u << 13) y = bits<float>(magnitude | 0x7f800000u);  // infinity, NaN
  return bits<float>(bits<uint32_t>(y) | uint32_t(x.bits & 0x8000) << 16);
}
template <class T, class S> GQA_INLINE T convert(S x) { return T(to_float(x)); }
template <> GQA_INLINE double convert<double, double>(double x) { return x; }

// Rounds to nearest, ties to even.
template <class S> GQA_INLINE S round_to(float x) { return S(x); }
template <> GQA_INLINE bf16 round_to<bf16>(float x) {
  const uint32_t u = bits<uint32_t>(x), up = u + 0x7fff + (u >> 16 & 1);
  return {uint16_t(x == x ? up >> 16 : (u >> 16 | 0x40))};
}
template <> GQA_INLINE f16 round_to<f16>(float x) {
  const uint32_t u = bits<uint32_t>(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  uint32_t h;
  if (magnitude > 0x7f800000) h = 0x7e00 | (magnitude >> 13 & 0x3ff);  // NaN
  else if (magnitude >= 0x47800000) h = 0x7c00;                        // beyond f16: infinity
  else if (magnitude >= 0x38800000) h = (magnitude + 0xc8000fff + (magnitude >> 13 & 1)) >> 13;
  else h = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - bits<uint32_t>(0.5f);  // subnormal
  return {uint16_t(h | sign)};
}

// The one rounding from the compute type to a storage type.
template <class S, class T> GQA_INLINE S narrow(T x) { return round_to<S>(float(x)); }
template <> GQA_INLINE double narrow<double, double>(double x) { return x; }

// ---- vectors in memory ----------------------------------------------------------------------------------------

// width<T> elements of type S, as T.
template <class T, class S> GQA_INLINE Vec<T> load_as(const S* p) {
  T x[width<T>];
  for (int l = 0; l < width<T>; l++) x[l] = convert<T>(read<S>(p + l));
  return load(x);
}
template <> GQA_INLINE Vec<float> load_as<float, float>(const float* p) { return load(p); }
template <> GQA_INLINE Vec<double> load_as<double, double>(const double* p) { return load(p); }

// The first n elements; the other lanes are 0, and their memory is not touched.
template <class T, class S> GQA_INLINE Vec<T> load_as(const S* p, int n) {
  T x[width<T>] = {};
  for (int l = 0; l < n; l++) x[l] = convert<T>(read<S>(p + l));
  return load(x);
}

// A whole vector, or the first n elements of the last one of a row.
template <class T, class S> GQA_INLINE Vec<T> load_row(const S* p, int64_t n) {
  return n >= width<T> ? load_as<T, S>(p) : load_as<T, S>(p, int(n));
}

// Keeps a value in a register that GCC would otherwise load again for each use: worth it where loads are the limit,
// that is where an S needs no further instruction to become a T.
template <class T, class S> constexpr bool loads_in_one_instruction = sizeof(S) == sizeof(T);
template <> constexpr bool loads_in_one_instruction<float, f16> = vector_bytes > 16;
template <class V> GQA_INLINE V in_register(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// Rounds width<T> elements to type S.
template <class S, class T> GQA_INLINE void store_as(S* p, Vec<T> v) {
  for (int l = 0; l < width<T>; l++) write(p + l, narrow<S>(T(v[l])));
}
template <> GQA_INLINE void store_as<float, float>(float* p, Vec<float> v) { store(p, v); }
template <> GQA_INLINE void store_as<double, double>(double* p, Vec<double> v) { store(p, v); }
template <> GQA_INLINE void store_as<bf16, float>(bf16* p, Vec<float> v) {
  typedef uint32_t Wide __attribute__((vector_size(vector_bytes)));
  typedef uint16_t Half __attribute__((vector_size(vector_bytes / 2)));
  const Wide u = bits<Wide>(v), nearest = (u + 0x7fff + (u >> 16 & 1)) >> 16, nan = u >> 16 | 0x40;
  write(p, __builtin_convertvector(v == v ? nearest : nan, Half));
}

#if defined(__AVX512F__)
template <> GQA_INLINE Vec<float> load_as<float, f16>(const f16* p) { return _mm512_cvtph_ps(read<__m256i>(p)); }
template <> GQA_INLINE Vec<float> load_as<float, bf16>(const bf16* p) {
  return bits<Vec<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(read<__m256i>(p)), 16));
}
template <> GQA_INLINE Vec<float> load_as<float, int8_t>(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(read<__m128i>(p)));
}
template <> GQA_INLINE Vec<float> load_as<float, float>(const float* p, int n) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
template <> GQA_INLINE void store_as<f16, float>(f16* p, Vec<float> v) {
  write(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
template <> GQA_INLINE Vec<float> load_as<float, f16>(const f16* p) { return _mm256_cvtph_ps(read<__m128i>(p)); }
template <> GQA_INLINE Vec<float> load_as<float, bf16>(const bf16* p) {
  return bits<Vec<float>>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(read<__m128i>(p)), 16));
}
template <> GQA_INLINE Vec<float> load_as<float, int8_t>(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(read<int64_t>(p))));
}
template <> GQA_INLINE Vec<float> load_as<float, float>(const float* p, int n) {
  static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_maskload_ps(p, read<__m256i>(ones + 8 - n));
}
template <> GQA_INLINE void store_as<f16, float>(f16* p, Vec<float> v) {
  write(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__aarch64__)
template <> GQA_INLINE Vec<float> load_as<float, f16>(const f16* p) { return vcvt_f32_f16(read<float16x4_t>(p)); }
template <> GQA_INLINE void store_as<f16, float>(f16* p, Vec<float> v) { write(p, vcvt_f16_f32(v)); }
#else
template <> GQA_INLINE Vec<float> load_as<float, f16>(const f16* p) {
  typedef uint16_t Half __attribute__((vector_size(vector_bytes / 2)));
  const Vec<int32_t> x = __builtin_convertvector(read<Half>(p), Vec<int32_t>), magnitude = (x & 0x7fff) << 13;
  const Vec<int32_t> finite = bits<Vec<int32_t>>(bits<Vec<float>>(magnitude) * 0x1p112f);  // as in to_float
  return bits<Vec<float>>((magnitude >= 0x7c00 << 13 ? magnitude | 0x7f800000 : finite) | (x & 0x8000) << 16);
}
#endif

// ---- arithmetic -----------------------------------------------------------------------------------------------

// max(a, b), and b where either is NaN.
#if defined(__AVX512F__)
GQA_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a, b); }
GQA_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a, b); }
#elif defined(__AVX2__)
GQA_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
GQA_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a, b); }
#elif defined(__SSE4_2__)
GQA_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm_max_ps(a, b); }
GQA_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm_max_pd(a, b); }
#else
template <class V> GQA_INLINE V max(V a, V b) { return a > b ? a : b; }
#endif

// min(a, b), and b where either is NaN.
#if defined(__AVX512F__)
GQA_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm512_min_ps(a, b); }
GQA_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm512_min_pd(a, b); }
#elif defined(__AVX2__)
GQA_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a, b); }
GQA_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a, b); }
#elif defined(__SSE4_2__)
GQA_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm_min_ps(a, b); }
GQA_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm_min_pd(a, b); }
#else
template <class V> GQA_INLINE V min(V a, V b) { return a < b ? a : b; }
#endif

// Rounded down, and square roots, of each lane.
#if defined(__AVX512F__)
GQA_INLINE Vec<float> floor(Vec<float> x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
GQA_INLINE Vec<double> floor(Vec<double> x) {
  return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
GQA_INLINE Vec<float> square_root(Vec<float> x) { return _mm512_sqrt_ps(x); }
GQA_INLINE Vec<double> square_root(Vec<double> x) { return _mm512_sqrt_pd(x); }
#elif defined(__AVX2__)
GQA_INLINE Vec<float> floor(Vec<float> x) { return _mm256_floor_ps(x); }
GQA_INLINE Vec<double> floor(Vec<double> x) { return _mm256_floor_pd(x); }
GQA_INLINE Vec<float> square_root(Vec<float> x) { return _mm256_sqrt_ps(x); }
GQA_INLINE Vec<double> square_root(Vec<double> x) { return _mm256_sqrt_pd(x); }
#elif defined(__SSE4_2__)
GQA_INLINE Vec<float> floor(Vec<float> x) { return _mm_floor_ps(x); }
GQA_INLINE Vec<double> floor(Vec<double> x) { return _mm_floor_pd(x); }
GQA_INLINE Vec<float> square_root(Vec<float> x) { return _mm_sqrt_ps(x); }
GQA_INLINE Vec<double> square_root(Vec<double> x) { return _mm_sqrt_pd(x); }
#else
GQA_INLINE Vec<float> floor(Vec<float> x) {
  for (int l = 0; l < width<float>; l++) x[l] = __builtin_floorf(x[l]);
  return x;
}
GQA_INLINE Vec<double> floor(Vec<double> x) {
  for (int l = 0; l < width<double>; l++) x[l] = __builtin_floor(x[l]);
  return x;
}
GQA_INLINE Vec<float> square_root(Vec<float> x) {
  for (int l = 0; l < width<float>; l++) x[l] = __builtin_sqrtf(x[l]);
  return x;
}
GQA_INLINE Vec<double> square_root(Vec<double> x) {
  for (int l = 0; l < width<double>; l++) x[l] = __builtin_sqrt(x[l]);
  return x;
}
#endif

// Lane l is the element at base + offsets[l] bytes.
template <class T> GQA_INLINE Vec<T> gather(const char* base, Vec<Int<T>> offsets) {
  T x[width<T>];
  for (int l = 0; l < width<T>; l++) x[l] = read<T>(base + offsets[l]);
  return load(x);
}
#if defined(__AVX512F__)
template <> GQA_INLINE Vec<float> gather<float>(const char* base, Vec<int32_t> offsets) {
  return _mm512_i32gather_ps(bits<__m512i>(offsets), base, 1);
}
#elif defined(__AVX2__)
template <> GQA_INLINE Vec<float> gather<float>(const char* base, Vec<int32_t> offsets) {
  return _mm256_i32gather_ps(reinterpret_cast<const float*>(base), bits<__m256i>(offsets), 1);
}
#endif

// ---- pairs of 16-bit integers, one pair in each lane ------------------------------------------------------------

// a.low * b.low + a.high * b.high.
GQA_INLINE Vec<int32_t> multiply_pairs(Vec<int32_t> a, Vec<int32_t> b) {
#if defined(__AVX512F__)
  return bits<Vec<int32_t>>(_mm512_madd_epi16(bits<__m512i>(a), bits<__m512i>(b)));
#elif defined(__AVX2__)
  return bits<Vec<int32_t>>(_mm256_madd_epi16(bits<__m256i>(a), bits<__m256i>(b)));
#elif defined(__SSE4_2__)
  return bits<Vec<int32_t>>(_mm_madd_epi16(bits<__m128i>(a), bits<__m128i>(b)));
#else
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}
// sum + a.low * b.low + a.high * b.high.
GQA_INLINE Vec<int32_t> add_pairs(Vec<int32_t> sum, Vec<int32_t> a, Vec<int32_t> b) {
#if defined(__AVX512VNNI__)
  return bits<Vec<int32_t>>(_mm512_dpwssd_epi32(bits<__m512i>(sum), bits<__m512i>(a), bits<__m512i>(b)));
#else
  return sum + multiply_pairs(a, b);
#endif
}
// 2 * width<float> elements, those side by side as a pair.
GQA_INLINE Vec<int32_t> load_pairs(const int8_t* p) {
#if defined(__AVX512F__)
  return bits<Vec<int32_t>>(_mm512_cvtepi8_epi16(read<__m256i>(p)));
#elif defined(__AVX2__)
  return bits<Vec<int32_t>>(_mm256_cvtepi8_epi16(read<__m128i>(p)));
#elif defined(__SSE4_2__)
  return bits<Vec<int32_t>>(_mm_cvtepi8_epi16(_mm_cvtsi64_si128(read<int64_t>(p))));
#else
  typedef int8_t Bytes __attribute__((vector_size(vector_bytes / 2)));
  typedef int16_t Pairs __attribute__((vector_size(vector_bytes)));
  return bits<Vec<int32_t>>(__builtin_convertvector(read<Bytes>(p), Pairs));
#endif
}

// ---- powers of two ----------------------------------------------------------------------------------------------

// exp2(x) = p * 2^n for x = n + f, n whole, |f| <= 1/2, p a polynomial in f = fraction(x). For x <= 0 only.
// times_exp2 is 0 where 2^n is subnormal: subnormal weights would cost a factor of 25.
template <class T> constexpr T round_and_bias = sizeof(T) == 8 ? T(0x1.8p52 + 1023) : T(0x1.8p23 + 127);
template <class T> GQA_INLINE Vec<T> at_least_lowest(Vec<T> x) {
  return max(splat(T(sizeof(T) == 8 ? -1023 : -127)), x);
}
template <class T> GQA_INLINE Vec<T> fraction(Vec<T> x) {
  x = at_least_lowest<T>(x);
  return x - ((x + round_and_bias<T>)-round_and_bias<T>);
}
template <class T> GQA_INLINE Vec<T> times_exp2(Vec<T> p, Vec<T> x) {
  // The sum's low bits hold n plus the exponent's bias; shifted up they are the bits of 2^n.
  return p * bits<Vec<T>>(bits<Vec<Int<T>>>(at_least_lowest<T>(x) + round_and_bias<T>) << (sizeof(T) == 8 ? 52 : 23));
}
#if defined(__AVX512F__)
template <> GQA_INLINE Vec<float> fraction<float>(Vec<float> x) { return _mm512_reduce_ps(x, 0); }
template <> GQA_INLINE Vec<double> fraction<double>(Vec<double> x) { return _mm512_reduce_pd(x, 0); }
template <> GQA_INLINE Vec<float> times_exp2<float>(Vec<float> p, Vec<float> x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(normal, p, _mm512_roundscale_ps(x, 0));
}
template <> GQA_INLINE Vec<double> times_exp2<double>(Vec<double> p, Vec<double> x) {
  const __mmask8 normal = _mm512_cmp_pd_mask(x, _mm512_set1_pd(-1022), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_pd(normal, p, _mm512_roundscale_pd(x, 0));
}
#endif

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
