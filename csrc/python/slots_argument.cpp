#include "slots_argument.h"

#include <algorithm>

#include "refusals.h"

namespace gqa {
namespace {

std::vector<int64_t> read_list(PyObject* list) {
  if (!PyList_CheckExact(list)) throw py::type_error("lengths and oldest must be lists");
  std::vector<int64_t> numbers(size_t(PyList_GET_SIZE(list)));
  for (size_t i = 0; i < numbers.size(); i++) {
    numbers[i] = PyLong_AsLongLong(PyList_GET_ITEM(list, Py_ssize_t(i)));
    if (numbers[i] == -1 && PyErr_Occurred()) throw py::error_already_set();
  }
  return numbers;
}

// With no Python code in between.
void set_list(PyObject* list, const std::vector<int64_t>& numbers) {
  std::vector<PyObject*> objects;
  for (const int64_t n : numbers) objects.push_back(PyLong_FromLongLong(n));
  if (std::find(objects.begin(), objects.end(), nullptr) != objects.end()) throw py::error_already_set();
  for (size_t i = 0; i < objects.size(); i++)
    if (PyList_SetItem(list, Py_ssize_t(i), objects[i]) != 0) throw py::error_already_set();
}

}  // namespace

SlotsArgument::SlotsArgument(PyObject* tuple)
    : items_(items_of(tuple, 6, "the slots")),
      slots(read_integer(items_[4], "capacity"), items_[5] == Py_None ? 0 : read_integer(items_[5], "window"),
            read_list(items_[2]), read_list(items_[3])) {}

void SlotsArgument::read_storage(Views& views) {
  keys = views.tensor(items_[0], "the cached k");
  values = views.tensor(items_[1], "the cached v");
}

void SlotsArgument::accept(Append& append, const NewTokens& tokens, const TensorView& out) {
  if (!append.check(tokens.k, tokens.v, 4, slots.batch(), Append::any) || !append.spares_inputs(out))
    raise(append.refusal());
  if (!slots.accepts(tokens.lengths.view(), append.tokens())) raise(slots.refusal());
  bool finite;
  {
    py::gil_scoped_release release;
    finite = append.convert(slots.counts().data());
  }
  if (!finite) raise(append.refusal());
}

void SlotsArgument::write(const Append& append, const std::vector<TokenMove>& moves) {
  {
    py::gil_scoped_release release;
    append.write(moves);
  }
  slots.advance();
  set_list(items_[3], slots.oldest());
  set_list(items_[2], slots.lengths());
}

}  // namespace gqa
