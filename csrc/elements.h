// elements.h: single elements of tensors, where no kernel is needed.
#pragma once

#include <cmath>
#include <cstring>

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

}  // namespace gqa
