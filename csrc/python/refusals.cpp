#include "refusals.h"

#include <algorithm>

#include "types.h"

namespace gqa {
namespace {

constexpr const char* names[] = {
#define GQA_NAME(rule) #rule,
    GQA_RULES(GQA_NAME)
#undef GQA_NAME
};

[[noreturn]] void raise_with(Rule rule, const char* argument, const py::dict& fields) {
  const py::object error = sibling("refusals").attr("error")(names[int(rule)], argument, **fields);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw py::error_already_set();
}

}  // namespace

py::tuple as_tuple(const Shape& shape) {
  py::tuple sizes(size_t(std::clamp(shape.axes, 0, max_axes)));
  for (size_t i = 0; i < sizes.size(); i++) sizes[i] = shape.sizes[i];
  return sizes;
}

void raise(const Refusal& r) {
  const auto text = [](const char* x) { return x ? x : ""; };
  const auto bound = [](int64_t n) -> py::object { return n >= unbounded ? py::none() : py::object(py::int_(n)); };
  py::dict fields;
  fields["other"] = text(r.other), fields["axis"] = text(r.axis);
  fields["index"] = r.index, fields["number"] = bound(r.number), fields["expected"] = bound(r.expected);
  fields["limit"] = r.limit, fields["real"] = r.real;
  fields["dtype"] = name_of(r.type), fields["expected_dtype"] = name_of(r.expected_type);
  fields["shape"] = as_tuple(r.shape), fields["expected_shape"] = as_tuple(r.expected_shape);
  raise_with(r.rule, text(r.argument), fields);
}

void refuse(Rule rule, const char* argument, py::object value) {
  py::dict fields;
  fields["value"] = std::move(value);
  raise_with(rule, argument, fields);
}

py::tuple rule_names() {
  py::tuple all(std::size(names));
  for (size_t i = 0; i < all.size(); i++) all[i] = names[i];
  return all;
}

}  // namespace gqa
