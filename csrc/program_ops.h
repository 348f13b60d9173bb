// program_ops.h: the operations of score programs: one table that validation, the kernels' interpreter and the interval
// analysis share.
//
// A value is a float of the call's compute type, a whole number in an integer lane as wide as that, or a bool. An
// operation is known by its name and the kinds of its operands, so that each line here is one loop of the interpreter.
#pragma once

#include <stdint.h>

namespace gqa {

enum class Kind : uint8_t { real, whole, boolean };
constexpr int kinds = 3;

// X(operation, name, kind of the result, kinds of the operands: f, w, b)
// clang-format off
#define GQA_INPUTS(X) \
  X(score, "score", real, "") X(b, "b", whole, "") X(h, "h", whole, "") X(q_idx, "q_idx", whole, "") \
  X(kv_idx, "kv_idx", whole, "")
#define GQA_CONSTANTS(X) \
  X(constant_real, "constant", real, "") X(constant_whole, "constant", whole, "") \
  X(constant_boolean, "constant", boolean, "")
// As many operands as the array has axes.
#define GQA_GATHERS(X) \
  X(gather_real, "gather", real, "w") X(gather_whole, "gather", whole, "w") X(gather_boolean, "gather", boolean, "w")
#define GQA_UNARY(X) \
  X(real_of_whole, "to_float", real, "w") X(real_of_boolean, "to_float", real, "b") \
  X(whole_of_real, "to_whole", whole, "f") X(whole_of_boolean, "to_whole", whole, "b") \
  X(boolean_of_real, "to_bool", boolean, "f") X(boolean_of_whole, "to_bool", boolean, "w") \
  X(neg_real, "neg", real, "f") X(abs_real, "abs", real, "f") X(sign_real, "sign", real, "f") \
  X(exp_real, "exp", real, "f") X(exp2_real, "exp2", real, "f") X(log_real, "log", real, "f") \
  X(tanh_real, "tanh", real, "f") X(sqrt_real, "sqrt", real, "f") X(floor_real, "floor", real, "f") \
  X(sin_real, "sin", real, "f") X(cos_real, "cos", real, "f") X(isfinite_real, "isfinite", boolean, "f") \
  X(neg_whole, "neg", whole, "w") X(abs_whole, "abs", whole, "w") X(sign_whole, "sign", whole, "w") \
  X(not_whole, "not", whole, "w") X(not_boolean, "not", boolean, "b")
#define GQA_BINARY(X) \
  X(add_real, "add", real, "ff") X(sub_real, "sub", real, "ff") X(mul_real, "mul", real, "ff") \
  X(div_real, "div", real, "ff") X(floordiv_real, "floordiv", real, "ff") X(mod_real, "mod", real, "ff") \
  X(pow_real, "pow", real, "ff") X(min_real, "min", real, "ff") X(max_real, "max", real, "ff") \
  X(add_whole, "add", whole, "ww") X(sub_whole, "sub", whole, "ww") X(mul_whole, "mul", whole, "ww") \
  X(floordiv_whole, "floordiv", whole, "ww") X(mod_whole, "mod", whole, "ww") \
  X(min_whole, "min", whole, "ww") X(max_whole, "max", whole, "ww") \
  X(and_whole, "and", whole, "ww") X(or_whole, "or", whole, "ww") X(xor_whole, "xor", whole, "ww") \
  X(shl_whole, "shl", whole, "ww") X(shr_whole, "shr", whole, "ww") \
  X(lt_real, "lt", boolean, "ff") X(le_real, "le", boolean, "ff") \
  X(eq_real, "eq", boolean, "ff") X(ne_real, "ne", boolean, "ff") \
  X(lt_whole, "lt", boolean, "ww") X(le_whole, "le", boolean, "ww") \
  X(eq_whole, "eq", boolean, "ww") X(ne_whole, "ne", boolean, "ww") \
  X(and_boolean, "and", boolean, "bb") X(or_boolean, "or", boolean, "bb") X(xor_boolean, "xor", boolean, "bb")
#define GQA_SELECTIONS(X) \
  X(where_real, "where", real, "bff") X(where_whole, "where", whole, "bww") X(where_boolean, "where", boolean, "bbb")
// What plans make of two: x * y + z, x * y - z and z - x * y.
#define GQA_FUSED(X) \
  X(mul_add_real, "mul_add", real, "fff") X(mul_sub_real, "mul_sub", real, "fff") \
  X(neg_mul_add_real, "neg_mul_add", real, "fff")
// clang-format on
#define GQA_OPERATIONS(X) \
  GQA_INPUTS(X)           \
  GQA_CONSTANTS(X)        \
  GQA_GATHERS(X)          \
  GQA_UNARY(X)            \
  GQA_BINARY(X)           \
  GQA_SELECTIONS(X)       \
  GQA_FUSED(X)

enum class Operation : uint8_t {
#define GQA_NAME(operation, name, result, operands) operation,
  GQA_OPERATIONS(GQA_NAME)
#undef GQA_NAME
};

// What the table says of an operation.
struct Signature {
  const char* name;
  Kind result;
  const char* operands;
};
constexpr Signature signatures[] = {
#define GQA_NAME(operation, name, result, operands) {name, Kind::result, operands},
    GQA_OPERATIONS(GQA_NAME)
#undef GQA_NAME
};
constexpr int operations = int(Operation::mul_add_real);  // that instructions may name
constexpr const Signature& signature_of(Operation operation) { return signatures[int(operation)]; }

constexpr bool is_constant(Operation operation) {
  return operation >= Operation::constant_real && operation <= Operation::constant_boolean;
}
constexpr bool is_gather(Operation operation) {
  return operation >= Operation::gather_real && operation <= Operation::gather_boolean;
}

}  // namespace gqa
