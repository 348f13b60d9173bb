// operations.h: each operation of score programs as a loop over vectors: one dispatch for a whole block of scores.
//
// A value lies at a place: from step to step `step` elements apart, and from one vector of lanes to the next `vector`.
// One that is the same for all steps, or for all lanes, has a distance of 0 there, and the loops need not know. Whole
// numbers and truth values lie as T's do, lane by lane.
#pragma once

#include "../program_plan.h"
#include "elementary.h"
#include "keys.h"

namespace gqa {
namespace GQA_ISA {
namespace {

template <class T> struct Place {
  T* at;
  int64_t step, vector;
};

// N vectors a step, so that what it takes to go from step to step is done once for them.
template <int N, class T, class F, class... Operands>
GQA_INLINE void each_vector(int n, F f, Place<T> to, Operands... operands) {
  for (int t = 0; t < n; t++) {
    for (int v = 0; v < N; v++) store(to.at + v * to.vector, f(load(operands.at + v * operands.vector)...));
    to.at += to.step;
    ((operands.at += operands.step), ...);
  }
}

// The element at p of a captured array, as a lane holds it: as a T, or its bits.
template <class T> GQA_INLINE T real_element(DType type, const char* p) {
  switch (type) {
    case DType::f64: return T(read<double>(p));
    case DType::f16: return T(to_float(read<f16>(p)));
    case DType::bf16: return T(to_float(read<bf16>(p)));
    default: return T(read<float>(p));
  }
}
GQA_INLINE int64_t whole_element(DType type, const char* p) {
  switch (type) {
    case DType::i8: return read<int8_t>(p);
    case DType::i16: return read<int16_t>(p);
    case DType::i32: return read<int32_t>(p);
    case DType::u8: return read<uint8_t>(p);
    case DType::u16: return read<uint16_t>(p);
    case DType::u32: return read<uint32_t>(p);
    default: return read<int64_t>(p);
  }
}
template <class T> T lane_element(Operation operation, DType type, const char* p) {
  if (operation == Operation::gather_real) return real_element<T>(type, p);
  if (operation == Operation::gather_whole) return bits<T>(Int<T>(whole_element(type, p)));
  return bits<T>(Int<T>(read<uint8_t>(p) ? -1 : 0));
}

// Elements of an array. Indices are clamped, whatever computed them, so that nothing outside it is ever read.
template <class T> class Gather {
  using I = Int<T>;

 public:
  Gather(const Step& step, const CapturedArray& array) : step_(step), array_(array) {}

  // n steps of a single vector.
  void run(int n, Place<T> to, Place<T>* operands) const {
    const bool in_place =
        step_.operation == Operation::gather_real
            ? array_.type == (sizeof(T) == 8 ? DType::f64 : DType::f32)
            : step_.operation == Operation::gather_whole && array_.type == (sizeof(T) == 8 ? DType::i64 : DType::i32);
    for (int t = 0; t < n; t++) {
      if (sizeof(T) == 4 && !array_.near) far(to.at, operands);
      else if (in_place) store(to.at, gather<T>(array_.data, offsets(operands)));
      else near(to.at, offsets(operands));
      to.at += to.step;
      for (int axis = 0; axis < step_.count; axis++) operands[axis].at += operands[axis].step;
    }
  }

 private:
  // In bytes, where every one fits a lane.
  GQA_INLINE Whole<T> offsets(const Place<T>* operands) const {
    Whole<T> offset{};
    for (int axis = 0; axis < step_.count; axis++) {
      Whole<T> index = read<Whole<T>>(operands[axis].at);
      const I size = I(array_.sizes[axis]);
      if (step_.from_end >> axis & 1) index = index < 0 ? index + size : index;
      index = larger<T>(smaller<T>(index, splat_whole<T>(size - 1)), Whole<T>{});
      offset += multiply_wholes<T>(index, splat_whole<T>(I(array_.strides[axis])));
    }
    return offset;
  }
  void near(T* to, Whole<T> offset) const {
    I offsets[width<T>];
    write(offsets, offset);
#pragma GCC unroll 1
    for (int l = 0; l < width<T>; l++) to[l] = lane_element<T>(step_.operation, array_.type, array_.data + offsets[l]);
  }
  void far(T* to, const Place<T>* operands) const {
    T x[width<T>];
#pragma GCC unroll 1
    for (int l = 0; l < width<T>; l++) {
      int64_t offset = 0;
      for (int axis = 0; axis < step_.count; axis++) {
        int64_t index = read<I>(operands[axis].at + l);
        if (step_.from_end >> axis & 1 && index < 0) index += array_.sizes[axis];
        offset += max(0, min(index, array_.sizes[axis] - 1)) * array_.strides[axis];
      }
      x[l] = lane_element<T>(step_.operation, array_.type, array_.data + offset);
    }
    memcpy(to, x, sizeof x);
  }

  const Step& step_;
  const CapturedArray& array_;
};

// Runs one operation over n steps of N vectors. Inputs other than constants are not operations: whoever runs a list
// fills them in.
template <class T, int N>
void run_operation(const Step& step, const CapturedArray* arrays, int n, Place<T> to, const Place<T>* x) {
  using V = Vec<T>;
  using W = Whole<T>;
  constexpr T one = 1;
  // clang-format off
#define GQA_UNARY_REAL(name, ...)  case Operation::name: return each_vector<N>(n, [](V a) __attribute__((always_inline)) { return bits<V>(__VA_ARGS__); }, to, x[0]);
#define GQA_UNARY_WHOLE(name, ...) case Operation::name: return each_vector<N>(n, [](V u) __attribute__((always_inline)) { const W a = bits<W>(u); return bits<V>(__VA_ARGS__); }, to, x[0]);
#define GQA_BINARY_REAL(name, ...)  case Operation::name: return each_vector<N>(n, [](V a, V b) __attribute__((always_inline)) { return bits<V>(__VA_ARGS__); }, to, x[0], x[1]);
#define GQA_BINARY_WHOLE(name, ...) case Operation::name: return each_vector<N>(n, [](V u, V v) __attribute__((always_inline)) { const W a = bits<W>(u), b = bits<W>(v); return bits<V>(__VA_ARGS__); }, to, x[0], x[1]);
  switch (step.operation) {
    case Operation::constant_real: return each_vector<N>(n, [y = splat(T(step.real))]() __attribute__((always_inline)) { return y; }, to);
    case Operation::constant_whole: return each_vector<N>(n, [y = bits<V>(splat_whole<T>(Int<T>(step.whole)))]() __attribute__((always_inline)) { return y; }, to);
    case Operation::constant_boolean: return each_vector<N>(n, [y = bits<V>(splat_whole<T>(step.whole ? -1 : 0))]() __attribute__((always_inline)) { return y; }, to);
    case Operation::gather_real:
    case Operation::gather_whole:
    case Operation::gather_boolean:
      for (int v = 0; v < N; v++) {
        Place<T> indices[max_array_axes];
        for (int axis = 0; axis < step.count; axis++)
          indices[axis] = {x[axis].at + v * x[axis].vector, x[axis].step, 0};
        Gather<T>(step, arrays[step.array]).run(n, {to.at + v * to.vector, to.step, 0}, indices);
      }
      return;

    GQA_UNARY_WHOLE(real_of_whole, to_real<T>(a))
    GQA_UNARY_WHOLE(real_of_boolean, a & bits<W>(splat(one)))
    GQA_UNARY_REAL(whole_of_real, to_whole<T>(a))
    GQA_UNARY_WHOLE(whole_of_boolean, a & 1)
    GQA_UNARY_REAL(boolean_of_real, a != 0)
    GQA_UNARY_WHOLE(boolean_of_whole, a != 0)
    GQA_UNARY_REAL(neg_real, -a)
    GQA_UNARY_REAL(abs_real, bits<W>(a) & largest_whole<T>)
    GQA_UNARY_REAL(sign_real, a > 0 ? splat(one) : a < 0 ? splat(-one) : a == 0 ? V{} : a)
    GQA_UNARY_REAL(exp_real, exponential<T>(a))
    GQA_UNARY_REAL(exp2_real, power_of_two<T>(a))
    GQA_UNARY_REAL(log_real, logarithm<T>(a))
    GQA_UNARY_REAL(tanh_real, tanh<T>(a))
    GQA_UNARY_REAL(sqrt_real, square_root(a))
    GQA_UNARY_REAL(floor_real, floor(a))
    GQA_UNARY_REAL(sin_real, each_lane<T>(a, [](T y) { return sine_of(y); }))
    GQA_UNARY_REAL(cos_real, each_lane<T>(a, [](T y) { return cosine_of(y); }))
    GQA_UNARY_REAL(isfinite_real, a - a == 0)
    GQA_UNARY_WHOLE(neg_whole, subtract_wholes<T>(W{}, a))
    GQA_UNARY_WHOLE(abs_whole, a < 0 ? subtract_wholes<T>(W{}, a) : a)
    GQA_UNARY_WHOLE(sign_whole, (a < 0) - (a > 0))
    GQA_UNARY_WHOLE(not_whole, ~a)
    GQA_UNARY_WHOLE(not_boolean, ~a)

    GQA_BINARY_REAL(add_real, a + b)
    GQA_BINARY_REAL(sub_real, a - b)
    GQA_BINARY_REAL(mul_real, a * b)
    GQA_BINARY_REAL(div_real, a / b)
    GQA_BINARY_REAL(floordiv_real, each_lane<T>(a, b, [](T y, T z) { return floor_divide_of(y, z); }))
    GQA_BINARY_REAL(mod_real, each_lane<T>(a, b, [](T y, T z) { return floor_modulo_of(y, z); }))
    GQA_BINARY_REAL(pow_real, each_lane<T>(a, b, [](T y, T z) { return power_of(y, z); }))
    GQA_BINARY_REAL(min_real, a != a ? a : a < b ? a : b)
    GQA_BINARY_REAL(max_real, a != a ? a : a > b ? a : b)
    GQA_BINARY_WHOLE(add_whole, add_wholes<T>(a, b))
    GQA_BINARY_WHOLE(sub_whole, subtract_wholes<T>(a, b))
    GQA_BINARY_WHOLE(mul_whole, multiply_wholes<T>(a, b))
    case Operation::floordiv_whole:
      if (step.whole < 0) return each_vector<N>(n, [](V a, V b) { return bits<V>(floor_divide(bits<W>(a), bits<W>(b))); }, to, x[0], x[1]);
      return each_vector<N>(n, [places = int(step.whole)](V a) __attribute__((always_inline)) { return bits<V>(bits<W>(a) >> places); }, to, x[0]);
    case Operation::mod_whole:
      if (step.whole < 0) return each_vector<N>(n, [](V a, V b) { return bits<V>(floor_modulo<T>(bits<W>(a), bits<W>(b))); }, to, x[0], x[1]);
      return each_vector<N>(n, [low = Int<T>((int64_t(1) << step.whole) - 1)](V a) __attribute__((always_inline)) { return bits<V>(bits<W>(a) & low); }, to, x[0]);
    GQA_BINARY_WHOLE(min_whole, smaller<T>(a, b))
    GQA_BINARY_WHOLE(max_whole, larger<T>(a, b))
    GQA_BINARY_WHOLE(and_whole, a & b)
    GQA_BINARY_WHOLE(or_whole, a | b)
    GQA_BINARY_WHOLE(xor_whole, a ^ b)
    GQA_BINARY_WHOLE(shl_whole, shift_left<T>(a, b))
    GQA_BINARY_WHOLE(shr_whole, shift_right<T>(a, b))
    GQA_BINARY_REAL(lt_real, a < b)
    GQA_BINARY_REAL(le_real, a <= b)
    GQA_BINARY_REAL(eq_real, a == b)
    GQA_BINARY_REAL(ne_real, a != b)
    GQA_BINARY_WHOLE(lt_whole, a < b)
    GQA_BINARY_WHOLE(le_whole, a <= b)
    GQA_BINARY_WHOLE(eq_whole, a == b)
    GQA_BINARY_WHOLE(ne_whole, a != b)
    GQA_BINARY_WHOLE(and_boolean, a & b)
    GQA_BINARY_WHOLE(or_boolean, a | b)
    GQA_BINARY_WHOLE(xor_boolean, a ^ b)
    case Operation::mul_add_real:
      return each_vector<N>(n, [](V a, V b, V c) __attribute__((always_inline)) { return a * b + c; }, to, x[0], x[1], x[2]);
    case Operation::mul_sub_real:
      return each_vector<N>(n, [](V a, V b, V c) __attribute__((always_inline)) { return a * b - c; }, to, x[0], x[1], x[2]);
    case Operation::neg_mul_add_real:
      return each_vector<N>(n, [](V a, V b, V c) __attribute__((always_inline)) { return c - a * b; }, to, x[0], x[1], x[2]);
    case Operation::where_real:
    case Operation::where_whole:
    case Operation::where_boolean:
      return each_vector<N>(n, [](V c, V a, V b) __attribute__((always_inline)) { return bits<W>(c) != 0 ? a : b; }, to, x[0], x[1], x[2]);
    default: return;
  }
    // clang-format on
#undef GQA_UNARY_REAL
#undef GQA_UNARY_WHOLE
#undef GQA_BINARY_REAL
#undef GQA_BINARY_WHOLE
}

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
