// elements.h: single elements of tensors, where no kernel is needed.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "attention.h"

namespace gqa {

// The element at an address that may not be aligned.
template <class T> T element(const char* p) {
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

inline double half_as_double(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                      : exponent == 0 ? std::ldexp(mantissa, -24)
                                      : std::ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 ? -size : size;
}

// Of a type of floats.
inline double element_as_double(const char* p, DType type) {
  switch (type) {
    case DType::f64: return element<double>(p);
    case DType::f16: return half_as_double(element<uint16_t>(p));
    case DType::bf16: {
      const uint32_t bits = uint32_t(element<uint16_t>(p)) << 16;
      return element<float>(reinterpret_cast<const char*>(&bits));
    }
    default: return element<float>(p);
  }
}

// A whole number of S; one that is of no use as a position, being further from 0 than `unbounded`, is +-unbounded.
template <class S> int64_t bounded_element(const char* p) {
  const S x = element<S>(p);
  if constexpr (sizeof(S) == 8) {
    if (x > S(unbounded)) return unbounded;
    if constexpr (std::is_signed_v<S>)
      if (x < -unbounded) return -unbounded;
  }
  return int64_t(x);
}

inline int64_t integer_at(const char* p, bool is_signed, int64_t bytes) {
  switch (bytes) {
    case 1: return is_signed ? bounded_element<int8_t>(p) : bounded_element<uint8_t>(p);
    case 2: return is_signed ? bounded_element<int16_t>(p) : bounded_element<uint16_t>(p);
    case 4: return is_signed ? bounded_element<int32_t>(p) : bounded_element<uint32_t>(p);
    default: return is_signed ? bounded_element<int64_t>(p) : bounded_element<uint64_t>(p);
  }
}

}  // namespace gqa
