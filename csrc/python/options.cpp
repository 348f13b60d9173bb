#include "options.h"

#include <string>

#include "refusals.h"
#include "scalars.h"
#include "types.h"

namespace gqa {
namespace {

py::object borrowed(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

void read_layout(PyObject* x, const char* name, Options& o) { o.layout = gqa::read_layout(x, name); }
void read_causal(PyObject* x, const char* name, Options& o) { o.causal = read_flag(x, name); }

// (left, right), each a number or None.
void read_window(PyObject* x, const char* name, Options& o) {
  if (x == Py_None) return;
  if (!PyTuple_Check(x) && !PyList_Check(x)) refuse(Rule::window_kind, name, borrowed(x));
  const py::object pair = py::reinterpret_steal<py::object>(PySequence_Tuple(x));
  if (!pair) throw py::error_already_set();
  if (PyTuple_GET_SIZE(pair.ptr()) != 2) refuse(Rule::window_kind, name, borrowed(x));
  int64_t* const sides[] = {&o.left, &o.right};
  for (int i = 0; i < 2; i++)
    if (PyObject* const side = PyTuple_GET_ITEM(pair.ptr(), i); side != Py_None) *sides[i] = read_integer(side, name);
}

void read_scale(PyObject* x, const char* name, Options& o) {
  o.default_scale = x == Py_None;
  if (!o.default_scale) o.scale = read_real(x, name);
}

void read_softcap(PyObject* x, const char* name, Options& o) { o.softcap = read_real(x, name); }

void read_out_dtype(PyObject* x, const char* name, Options& o) {
  if (x == Py_None) return;
  const auto dtype = sibling("dtypes").attr("name_of")(py::handle(x), name).cast<std::string>();
  for (const DType type : {DType::f32, DType::f64, DType::f16, DType::bf16})
    if (dtype == name_of(type)) o.out_type = type;
  if (o.out_type == DType::none) refuse(Rule::dtype_name, name, py::str(dtype));
}

void read_return_lse(PyObject* x, const char* name, Options& o) { o.return_lse = read_flag(x, name); }

void read_num_threads(PyObject* x, const char* name, Options& o) { o.threads = read_threads(x, name); }

// A program and the arrays that it takes elements of: (ScoreProgram, tuple).
void read_program(PyObject* x, const char* name, Options& o) {
  if (x == Py_None) return;
  if (!PyTuple_Check(x) || PyTuple_GET_SIZE(x) != 2 || !PyTuple_Check(PyTuple_GET_ITEM(x, 1)) ||
      !py::isinstance<ScoreProgram>(PyTuple_GET_ITEM(x, 0)))
    refuse(Rule::program_kind, name, borrowed(x));
  o.program = py::handle(PyTuple_GET_ITEM(x, 0)).cast<const ScoreProgram*>();
}

struct Number {
  const char* name;
  void (*read)(PyObject* object, const char* name, Options& options);
};
struct Array {
  const char* name;
  TensorView Options::*view;
  Role role;
};

// The options of gqa.options.Options, in its order: numbers, flags and names, and then tensors.
constexpr Number numbers[] = {
    {"layout", read_layout},         {"causal", read_causal},           {"window", read_window},
    {"scale", read_scale},           {"softcap", read_softcap},         {"out_dtype", read_out_dtype},
    {"return_lse", read_return_lse}, {"num_threads", read_num_threads}, {"program", read_program},
};
constexpr Array arrays[] = {
    {"mask", &Options::mask, Role::mask},
    {"sinks", &Options::sinks, Role::floats},
    {"out", &Options::out, Role::floats},
};
constexpr Py_ssize_t program_index = std::size(numbers) - 1;
constexpr size_t count = std::size(numbers) + std::size(arrays);

}  // namespace

py::tuple option_names() {
  py::tuple names(count);
  size_t i = 0;
  for (const Number& option : numbers) names[i++] = option.name;
  for (const Array& option : arrays) names[i++] = option.name;
  return names;
}

OptionReader::OptionReader(PyObject* tuple) : tuple_(tuple) {
  if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != Py_ssize_t(count))
    throw py::type_error("options must be a gqa.options.Options");
}

void OptionReader::read_numbers() {
  for (size_t i = 0; i < std::size(numbers); i++)
    numbers[i].read(PyTuple_GET_ITEM(tuple_, Py_ssize_t(i)), numbers[i].name, options_);
}

void OptionReader::read_tensors(Views& views) {
  if (options_.program) read_captured(views);
  for (size_t i = 0; i < std::size(arrays); i++)
    options_.*arrays[i].view =
        views.view(PyTuple_GET_ITEM(tuple_, Py_ssize_t(std::size(numbers) + i)), arrays[i].name, arrays[i].role);
}

void OptionReader::read_captured(Views& views) {
  static constexpr const char* kind_names[] = {"floats", "integers", "bool"};
  PyObject* const captured = PyTuple_GET_ITEM(PyTuple_GET_ITEM(tuple_, program_index), 1);
  const std::vector<ScoreProgram::Array>& expected = options_.program->arrays();
  if (size_t(PyTuple_GET_SIZE(captured)) != expected.size()) {
    Refusal refusal{};
    refusal.rule = Rule::program_arrays;
    refusal.number = PyTuple_GET_SIZE(captured), refusal.expected = int64_t(expected.size());
    raise(refusal);
  }
  options_.captured.reserve(expected.size());
  for (size_t i = 0; i < expected.size(); i++) {
    PyObject* const x = PyTuple_GET_ITEM(captured, Py_ssize_t(i));
    const char* const name = expected[i].name.c_str();
    const TensorView view = views.view(x, name, Role::captured);
    if (!view.given()) refuse(Rule::tensor_kind, name, borrowed(x));
    const Kind kind = expected[i].kind;
    if (kind == Kind::real    ? !is_float(view.type)
        : kind == Kind::whole ? !is_integer(view.type)
                              : view.type != DType::boolean)
      refuse(Rule::program_dtype, name, py::make_tuple(name_of(view.type), kind_names[int(kind)]));
    options_.captured.push_back(view);
  }
}

PyObject* OptionReader::mask() const { return PyTuple_GET_ITEM(tuple_, Py_ssize_t(count - 3)); }
PyObject* OptionReader::sinks() const { return PyTuple_GET_ITEM(tuple_, Py_ssize_t(count - 2)); }
PyObject* OptionReader::out() const { return PyTuple_GET_ITEM(tuple_, Py_ssize_t(count - 1)); }

}  // namespace gqa
