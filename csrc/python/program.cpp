// program.cpp: the extension's class ScoreProgram: what tracing gives, as a program of the core.
#include "../program.h"

#include <stdexcept>
#include <tuple>

#include "bindings.h"

namespace gqa {
namespace {

constexpr const char* kind_names[] = {"float", "whole", "bool"};
constexpr const char* output_names[] = {"score", "mask", "slope"};

template <size_t count> int index_of(const std::string& name, const char* const (&names)[count], const char* what) {
  for (size_t i = 0; i < count; i++)
    if (name == names[i]) return int(i);
  throw py::value_error(std::string(what) + " '" + name + "' is not known");
}

Kind kind_named(const std::string& name) { return Kind(index_of(name, kind_names, "the kind")); }

int64_t whole_number(const py::handle& x) {
  int overflow = 0;
  const int64_t number = PyLong_AsLongLongAndOverflow(x.ptr(), &overflow);
  if (overflow != 0) throw py::value_error("a whole number is larger than 64 bits hold");
  if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
  return number;
}

// (operation, kind of the result, operands, payload).
ScoreProgram::Source source_of(const py::tuple& instruction) {
  if (instruction.size() != 4) throw py::value_error("an instruction has four items");
  ScoreProgram::Source source;
  source.name = instruction[0].cast<std::string>();
  source.kind = kind_named(instruction[1].cast<std::string>());
  for (const py::handle operand : instruction[2].cast<py::tuple>()) source.operands.push_back(whole_number(operand));
  const py::object payload = instruction[3];
  if (source.name == "constant") {
    if (source.kind == Kind::real) source.real = payload.cast<double>();
    else if (source.kind == Kind::whole) source.whole = whole_number(payload);
    else source.whole = payload.cast<bool>();
  } else if (source.name == "gather") {
    const auto [array, from_end] = payload.cast<std::pair<py::object, py::tuple>>();
    source.array = whole_number(array);
    for (const py::handle flag : from_end) source.from_end.push_back(flag.cast<bool>());
  }
  return source;
}

std::unique_ptr<ScoreProgram> make_program(const py::sequence& instructions, const py::dict& results,
                                           const py::sequence& arrays) {
  std::vector<ScoreProgram::Source> sources;
  for (const py::handle instruction : instructions) sources.push_back(source_of(instruction.cast<py::tuple>()));
  int64_t numbers[outputs] = {-1, -1, -1};
  for (const auto& [name, value] : results) {
    const int64_t number = whole_number(value);
    if (number < 0) throw py::value_error("an output is not one of the values");
    numbers[index_of(name.cast<std::string>(), output_names, "the output")] = number;
  }
  std::vector<ScoreProgram::Array> captured;
  for (const py::handle array : arrays) {
    const auto [axes, kind, name] = array.cast<std::tuple<int, std::string, std::string>>();
    captured.push_back({axes, kind_named(kind), name});
  }
  return std::make_unique<ScoreProgram>(sources, numbers, std::move(captured));  // std::invalid_argument: ValueError
}

py::dict operation_table() {
  py::dict table;
  for (int i = 0; i < operations; i++) {
    const Signature& signature = signatures[i];
    py::list operands;
    for (const char* letter = signature.operands; *letter; letter++)
      operands.append(kind_names[*letter == 'f' ? 0 : *letter == 'w' ? 1 : 2]);
    if (is_gather(Operation(i))) operands.append("...");
    const py::tuple forms = table.contains(signature.name) ? py::tuple(table[signature.name]) : py::tuple();
    table[signature.name] =
        forms + py::make_tuple(py::make_tuple(py::tuple(operands), kind_names[int(signature.result)]));
  }
  return table;
}

}  // namespace

void bind_program(py::module_& m) {
  py::class_<ScoreProgram>(m, "ScoreProgram", py::module_local())
      .def(py::init(&make_program), py::arg("instructions"), py::arg("outputs"), py::arg("arrays"), py::pos_only());
  m.attr("SCORE_OPS") = operation_table();
}

}  // namespace gqa
