// program_plan.h: a score program as the kernels read it: plain data, lists of operations on vectors.
//
// Every value of a program has a rate, how often it changes, and is computed no more often than that:
//   call  the same for a whole task: constants, b, and h where every KV head has one query head
//   row   one for each row: of h and q_idx
//   key   one for each key: of kv_idx
//   full  one for each score
// Values that other lists use have slots of their own; the others share registers, as do all of full rate.
#pragma once

#include "attention.h"
#include "program_ops.h"

namespace gqa {

constexpr int max_array_axes = 8;

enum class Rate : uint8_t { call, row, key, full };

// Where a value lies. Of full rate, 0 is the scores themselves: a list that gives scores overwrites them once it has
// read them, others leave them alone.
struct Slot {
  Rate rate;
  int32_t index;
};

// One operation on vectors. whole: of a constant (of a bool 0 or 1); of floordiv and mod, the divisor is 2^whole unless
// that is negative.
struct Step {
  Operation operation;
  uint8_t count;      // of operands
  uint16_t from_end;  // gather: bit i: a negative index on axis i counts from the end
  int32_t array;      // gather: its number
  const Slot* operands;
  Slot to;
  double real;  // of a constant
  int64_t whole;
};

// What a program may give for each score: the new score, whether it is attended, the derivative of the new one with
// respect to the old.
enum Output { output_score, output_mask, output_slope, outputs };
enum Goal { goal_score = 1 << output_score, goal_mask = 1 << output_mask, goal_slope = 1 << output_slope };

// Computes the outputs of its goal, a set of bits; results[o] is where output o lies then.
struct StepList {
  const Step* steps;
  int32_t count;
  Slot results[outputs];
};

struct ProgramPlan {
  StepList of_rate[int(Rate::full)];  // values that later lists use: call, then row and key
  StepList full[1 << outputs];        // by goal; meaningful where the program has all of it
  int32_t call_slots, row_slots, key_slots;
  int32_t registers;  // of full rate, beside the scores
  bool has[outputs];  // slope: false also where it is 1 for all scores, as of a program that only adds to them
};

// An array that a program takes elements of, as it is at a call: every axis has elements.
struct CapturedArray {
  const char* data;
  DType type;
  int axes;
  int64_t sizes[max_array_axes], strides[max_array_axes];  // strides in bytes
  bool near;                                               // the offset of every element fits 32 bits
};

// A program at a call.
struct BoundProgram {
  const class ScoreProgram* program;
  const ProgramPlan* plan;
  const CapturedArray* arrays;
};

}  // namespace gqa
