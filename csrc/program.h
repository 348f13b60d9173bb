// program.h: score programs: what becomes of a score, and which keys are hidden.
//
// A program comes as instructions, one value each, made by tracing a user's functions. It is checked once, and planned
// (program_plan.h) once; arrays that it takes elements of come with each call.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "program_plan.h"

namespace gqa {

constexpr int64_t max_instructions = 1 << 16;

// Value i of a program is what instruction i gives.
struct Instruction {
  Operation operation;
  uint16_t from_end = 0;          // as in Step
  int32_t array = 0;              // of a gather
  std::vector<int32_t> operands;  // numbers of earlier values
  double real = 0;                // of a constant
  int64_t whole = 0;
};

class ScoreProgram {
 public:
  // An instruction by the names of its operation and of its result's kind.
  struct Source {
    std::string name;
    Kind kind;
    std::vector<int64_t> operands;
    double real = 0;
    int64_t whole = 0, array = 0;
    std::vector<bool> from_end;
  };
  struct Array {
    int axes;
    Kind kind;
    std::string name;  // in messages
  };

  // results: of each output the number of its value, or -1. Throws std::invalid_argument unless every operand comes
  // earlier and is of a kind that its operation takes, every array is there, and so on.
  ScoreProgram(const std::vector<Source>& sources, const int64_t (&results)[outputs], std::vector<Array> arrays);
  ~ScoreProgram();

  // one_head: every KV head has a single query head. small: numbers of the call are small_numbers (rewrites.h).
  const ProgramPlan& plan(bool one_head, bool small) const;

  const std::vector<Instruction>& instructions() const { return instructions_; }
  const std::vector<Array>& arrays() const { return arrays_; }
  int32_t result(Output output) const { return results_[output]; }
  bool has_wide_constants() const { return wide_constants_; }  // whole numbers that 32 bits do not hold

 private:
  Instruction checked(const Source& source, size_t index) const;

  std::vector<Instruction> instructions_;
  int32_t results_[outputs];
  std::vector<Array> arrays_;
  bool wide_constants_ = false;
  std::unique_ptr<class Planned> plans_[2][2];  // by one_head and small
};

}  // namespace gqa
