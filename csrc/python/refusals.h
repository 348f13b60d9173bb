// refusals.h: refusals as Python's exceptions, with the sentences of gqa/refusals.py.
#pragma once

#include <pybind11/pybind11.h>

#include "../refusal.h"

namespace gqa {

namespace py = pybind11;

[[noreturn]] void raise(const Refusal& refusal);

// The same for what is refused before it is a view or a number. value: the object, or what is to be said of it.
[[noreturn]] void refuse(Rule rule, const char* argument, py::object value = py::none());

py::tuple as_tuple(const Shape& shape);

// The names of all rules.
py::tuple rule_names();

}  // namespace gqa
