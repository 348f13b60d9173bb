// attention.cpp: the extension's functions `attention` and `infer_shapes`.
#include "bindings.h"
#include "calls.h"
#include "refusals.h"
#include "tables.h"

namespace gqa {
namespace {

// The arguments of gqa.attention: (q, k, v, past_key, past_value), query_offset, kv_lengths, options.
struct Arguments {
  Arguments(PyObject* const* args, bool described)
      : tensors(items_of(args[0], 5, "the tensors")), options(args[3]), views(described) {}

  void check(Call& call, const IntegerList& kv_lengths, const IntegerList& query_offset) {
    k = views.tensor(tensors[1], "k"), v = views.tensor(tensors[2], "v");
    past_key = views.tensor(tensors[3], "past_key"), past_value = views.tensor(tensors[4], "past_value");
    q = query_view(views, tensors[0]);
    options.read_tensors(views);
    if (!call.set_query(q) || !call.set_keys(k, v, past_key, past_value) || !call.set_options(nullptr) ||
        !call.check_positions(kv_lengths.view(), query_offset.view()))
      raise(call.refusal());
  }

  PyObject* const* const tensors;
  OptionReader options;
  Views views;
  TensorView q;
  Tensor k, v, past_key, past_value;
};

PyObject* attention(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    require_arguments("attention", count, 4);
    Arguments arguments(args, false);
    const IntegerList query_offset(args[1], "query_offset"), kv_lengths(args[2], "kv_lengths");
    arguments.options.read_numbers();
    Call call(arguments.options.options());
    arguments.check(call, kv_lengths, query_offset);
    if (!call.list_batch(kv_lengths.view(), query_offset.view())) raise(call.refusal());
    return compute(call, arguments.options, arguments.tensors[0]);
  });
}

// The same arguments, each tensor a tuple (shape, name of the dtype): ((out's shape, dtype), (lse's shape, dtype)).
PyObject* infer_shapes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    require_arguments("infer_shapes", count, 4);
    Arguments arguments(args, true);
    const IntegerList query_offset = described_integers(args[1], "query_offset"),
                      kv_lengths = described_integers(args[2], "kv_lengths");
    arguments.options.read_numbers();
    Call call(arguments.options.options());
    arguments.check(call, kv_lengths, query_offset);
    return described_results(call);
  });
}

PyMethodDef methods[] = {
    method<attention>("attention", "gqa.attention, once its arguments are in order."),
    method<infer_shapes>("infer_shapes", "gqa.infer_shapes, the same."),
    method<attend_sequences>("attend_sequences", "Attention of sequences whose keys are runs of stores."),
    method<infer_sequences>("infer_sequences", "The shapes and dtypes of its results, the same."),
    method<attend_states>("attend_states", "The raw states of such sequences."),
    method<merge_subtrees>("merge_subtrees", "Raw states of parts of sequences, merged in the order of the tree."),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_attention(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
  m.attr("MOST_CHANNELS") = max_channels;
  m.attr("SEQUENCE_COLUMNS") = sequence_columns;
  m.attr("RUN_COLUMNS") = run_columns;
  m.attr("OPTIONS") = option_names();
  m.attr("RULES") = rule_names();
}

}  // namespace gqa
