// slots.cpp: the extension's functions for gqa.KVCache, `append_slots` and `attend_slots`: checks, attention and the
// rows that are written, in one call.
#include "bindings.h"
#include "refusals.h"
#include "slots_argument.h"

namespace gqa {
namespace {

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
    argument.accept(append, tokens, {});
    argument.write(append, argument.slots.moves());
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
    if (tokens.given()) argument.accept(append, tokens, reader.options().out);
    else if (tokens.lengths.view().given()) refuse(Rule::lengths_alone, "lengths");
    Call call(reader.options());
    const int64_t queries = q.shape[layout.token];
    const MaskShape mask_shape{slots.batch(), queries, slots.longest()};
    if (!call.set_query(q) || !call.add_store(argument.keys, argument.values) ||
        (tokens.given() && !call.add_store(append.k(), append.v())) || !call.set_options(&mask_shape))
      raise(call.refusal());
    if (!slots.list(call.sequences(mask_shape), queries, reader.options().left)) raise(slots.refusal());
    py::object result = compute(call, reader, args[0]);
    if (tokens.given()) argument.write(append, slots.moves());
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
