// slots.cpp: the extension's functions for gqa.KVCache, `append_slots` and `attend_slots`: checks, attention and the
// rows that are written, in one call.
#include <algorithm>

#include "../slots.h"
#include "bindings.h"
#include "caches.h"
#include "refusals.h"

namespace gqa {
namespace {

// Storage, and Python's lists of what is in it: (keys, values, lengths, oldest, capacity, window or None).
class SlotsArgument {
 public:
  explicit SlotsArgument(PyObject* tuple)
      : items_(items_of(tuple, 6, "the slots")),
        slots(read_integer(items_[4], "capacity"), items_[5] == Py_None ? 0 : read_integer(items_[5], "window"),
              read_list(items_[2]), read_list(items_[3])) {}

  void read_storage(Views& views) {
    keys = views.tensor(items_[0], "the cached k");
    values = views.tensor(items_[1], "the cached v");
  }

  // Both lists hold what the slots do, with no Python code in between.
  void update() const {
    set_list(items_[3], slots.oldest());
    set_list(items_[2], slots.lengths());
  }

 private:
  static std::vector<int64_t> read_list(PyObject* list) {
    if (!PyList_CheckExact(list)) throw py::type_error("lengths and oldest must be lists");
    std::vector<int64_t> numbers(size_t(PyList_GET_SIZE(list)));
    for (size_t i = 0; i < numbers.size(); i++) {
      numbers[i] = PyLong_AsLongLong(PyList_GET_ITEM(list, Py_ssize_t(i)));
      if (numbers[i] == -1 && PyErr_Occurred()) throw py::error_already_set();
    }
    return numbers;
  }
  static void set_list(PyObject* list, const std::vector<int64_t>& numbers) {
    std::vector<PyObject*> objects;
    for (const int64_t n : numbers) objects.push_back(PyLong_FromLongLong(n));
    if (std::find(objects.begin(), objects.end(), nullptr) != objects.end()) throw py::error_already_set();
    for (size_t i = 0; i < objects.size(); i++)
      if (PyList_SetItem(list, Py_ssize_t(i), objects[i]) != 0) throw py::error_already_set();
  }

  PyObject* const* const items_;

 public:
  Slots slots;
  Tensor keys, values;
};

// Checks new tokens and converts them to what is stored.
void accept(Append& append, const NewTokens& tokens, Slots& slots, const TensorView& out) {
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

void write(const Append& append, SlotsArgument& argument) {
  {
    py::gil_scoped_release release;
    append.write(argument.slots.moves());
  }
  argument.slots.advance();
  argument.update();
}

PyObject* append_slots(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    require_arguments("append_slots", count, 3);
    NewTokens tokens(args[0]);
    SlotsArgument argument(args[1]);
    const Layout layout = read_layout(args[2], "layout");
    Views views;
    tokens.read(views);
    argument.read_storage(views);
    if (!tokens.given()) refuse(Rule::tensor_kind, "k", py::none());
    Append append(argument.keys, argument.values, layout);
    accept(append, tokens, argument.slots, {});
    write(append, argument);
    return py::none();
  });
}

PyObject* attend_slots(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    require_arguments("attend_slots", count, 4);
    NewTokens tokens(args[1]);
    SlotsArgument argument(args[2]);
    Slots& slots = argument.slots;
    OptionReader reader(args[3]);
    reader.read_numbers();
    if (slots.window() > 0) reader.limit_left(slots.window() - 1);
    const Layout layout = reader.options().layout;
    Views views;
    tokens.read(views);
    argument.read_storage(views);
    const TensorView q = query_view(views, args[0]);
    reader.read_tensors(views);
    check_query(q, argument.keys.data, 4, layout);
    if (q.shape[0] != slots.batch()) refuse_size(Rule::size_as, "q", "batch", q.shape[0], slots.batch(), "the cache");

    Append append(argument.keys, argument.values, layout);
    if (tokens.given()) accept(append, tokens, slots, reader.options().out);
    else if (tokens.lengths.view().given()) refuse(Rule::lengths_alone, "lengths");
    Call call(reader.options());
    const int64_t queries = q.shape[layout.token];
    const MaskShape mask_shape{slots.batch(), queries, slots.longest()};
    if (!call.set_query(q) || !call.add_store(argument.keys, argument.values) ||
        (tokens.given() && !call.add_store(append.k(), append.v())) || !call.set_options(&mask_shape))
      raise(call.refusal());
    if (!slots.list(call.sequences(mask_shape), queries, reader.options().left)) raise(slots.refusal());
    py::object result = compute(call, reader, args[0]);
    if (tokens.given()) write(append, argument);
    return result;
  });
}

PyMethodDef methods[] = {
    method<append_slots>("append_slots", "gqa.KVCache.append, in place."),
    method<attend_slots>("attend_slots", "gqa.KVCache.attend: attention, and the new tokens written."),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_slots(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace gqa
