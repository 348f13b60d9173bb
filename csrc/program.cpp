#include "program.h"

#include <stdexcept>

#include "planner.h"

namespace gqa {
namespace {

constexpr const char* output_names[] = {"score", "mask", "slope"};
constexpr Kind output_kinds[] = {Kind::real, Kind::boolean, Kind::real};

[[noreturn]] void refuse(const std::string& what, const std::string& why) {
  throw std::invalid_argument(what + " " + why);
}

bool takes(const char* operands, bool gather, const std::vector<Kind>& given) {
  const std::string letters = operands;
  if (!gather && letters.size() != given.size()) return false;
  for (size_t i = 0; i < given.size(); i++)
    if (letters[gather ? 0 : i] != "fwb"[int(given[i])]) return false;
  return true;
}

}  // namespace

ScoreProgram::ScoreProgram(const std::vector<Source>& sources, const int64_t (&results)[outputs],
                           std::vector<Array> arrays)
    : arrays_(std::move(arrays)) {
  if (int64_t(sources.size()) > max_instructions)
    throw std::invalid_argument("a score program has " + std::to_string(sources.size()) +
                                " operations, expected at most " + std::to_string(max_instructions));
  for (size_t i = 0; i < arrays_.size(); i++)
    if (arrays_[i].axes < 1 || arrays_[i].axes > max_array_axes)
      refuse("array " + std::to_string(i), "has " + std::to_string(arrays_[i].axes) + " axes, expected 1 to 8");
  instructions_.reserve(sources.size());
  bool seen[operations] = {};
  for (size_t i = 0; i < sources.size(); i++) {
    instructions_.push_back(checked(sources[i], i));
    const Operation operation = instructions_.back().operation;
    if (operation <= Operation::kv_idx && seen[int(operation)])
      refuse("instruction " + std::to_string(i), "repeats the input " + sources[i].name);
    seen[int(operation)] = true;
    if (operation == Operation::constant_whole && int32_t(sources[i].whole) != sources[i].whole) wide_constants_ = true;
  }
  for (int o = 0; o < outputs; o++) {
    if (results[o] < -1 || results[o] >= int64_t(instructions_.size()))
      refuse(std::string("output ") + output_names[o], "is not one of the values");
    results_[o] = int32_t(results[o]);
    if (results_[o] >= 0 && signature_of(instructions_[size_t(results_[o])].operation).result != output_kinds[o])
      refuse(std::string("output ") + output_names[o], "is of another kind");
  }
  for (const bool one_head : {false, true}) {
    plans_[one_head][0] =
        std::make_unique<Planned>(Listing{instructions_, {results_[0], results_[1], results_[2]}}, one_head);
    plans_[one_head][1] = std::make_unique<Planned>(with_floats_early(*this, one_head), one_head);
  }
}

ScoreProgram::~ScoreProgram() = default;

const ProgramPlan& ScoreProgram::plan(bool one_head, bool small) const { return plans_[one_head][small]->plan(); }

Instruction ScoreProgram::checked(const Source& source, size_t index) const {
  const std::string what = "instruction " + std::to_string(index) + " (" + source.name + ")";
  Instruction instruction{};
  std::vector<Kind> given;
  for (const int64_t operand : source.operands) {
    if (operand < 0 || operand >= int64_t(index)) refuse(what, "has an operand that does not come before it");
    instruction.operands.push_back(int32_t(operand));
    given.push_back(signature_of(instructions_[size_t(operand)].operation).result);
  }
  int found = 0;
  while (found < operations && !(source.name == signatures[found].name && source.kind == signatures[found].result &&
                                 takes(signatures[found].operands, is_gather(Operation(found)), given)))
    found++;
  if (found == operations) refuse(what, "is no operation on such operands");
  instruction.operation = Operation(found);
  instruction.real = source.real;
  instruction.whole = source.whole;
  if (!is_gather(instruction.operation)) return instruction;

  if (source.array < 0 || source.array >= int64_t(arrays_.size())) refuse(what, "names an array that does not exist");
  const Array& array = arrays_[size_t(source.array)];
  if (array.kind != source.kind) refuse(what, "is of another kind than its array");
  if (int(given.size()) != array.axes || int(source.from_end.size()) != array.axes)
    refuse(what, "has " + std::to_string(given.size()) + " indices, expected " + std::to_string(array.axes));
  instruction.array = int32_t(source.array);
  for (int axis = 0; axis < array.axes; axis++) instruction.from_end |= uint16_t(source.from_end[size_t(axis)] << axis);
  return instruction;
}

}  // namespace gqa
