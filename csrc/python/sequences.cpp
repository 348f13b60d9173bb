// sequences.cpp: the extension's functions on sequences of runs, which packed batches and caches call, and on the
// states of subtrees, in which form parts of a sequence's keys are put together.
#include "calls.h"
#include "refusals.h"
#include "tables.h"
#include "without_gil.h"

namespace gqa {
namespace {

// tensors: where their views are kept.
void add_stores(Call& call, Views& views, PyObject* stores, std::vector<Tensor>& tensors) {
  if (!PyTuple_Check(stores) || PyTuple_GET_SIZE(stores) == 0) refuse(Rule::stores, "stores");
  const Py_ssize_t number = PyTuple_GET_SIZE(stores);
  tensors.reserve(size_t(2 * number));
  for (Py_ssize_t i = 0; i < number; i++) {
    PyObject* const* const items = items_of(PyTuple_GET_ITEM(stores, i), 4, "a store");
    const char *k_name = PyUnicode_AsUTF8(items[0]), *v_name = PyUnicode_AsUTF8(items[2]);
    if (!k_name || !v_name) throw py::error_already_set();
    const Tensor& k = tensors.emplace_back(views.tensor(items[1], k_name));
    const Tensor& v = tensors.emplace_back(views.tensor(items[3], v_name));
    if (!call.add_store(k, v)) raise(call.refusal());
  }
}

// Rows: batch, token, queries, padding, slot, number of subtrees; of subtrees: number, slot, those of the first first.
constexpr int merge_columns = 6, subtree_columns = 2;
void add_merges(SequenceList& list, const Table& sequences, const Table& subtrees, int64_t whole_queries) {
  list.reserve(sequences.rows(), 0);
  int64_t next = 0;
  for (int64_t i = 0; i < sequences.rows(); i++) {
    const int64_t* s = sequences.row(i);
    if (s[5] < 0 || s[5] > subtrees.rows() - next) refuse(Rule::rows, "subtrees");
    for (const int64_t end = next + s[5]; next < end; next++)
      if (const int64_t* x = subtrees.row(next); !list.add_subtree(x[0], x[1])) raise(list.refusal());
    Sequence sequence{};
    sequence.batch = s[0], sequence.token = s[1], sequence.queries = s[2], sequence.padding = s[3];
    sequence.slot = s[4];
    sequence.whole_queries = whole_queries;
    if (!list.add_sequence(sequence)) raise(list.refusal());
  }
}

// A call of sequences up to its options: (q, stores, mask_shape, options), checked.
struct SequenceCall {
  SequenceCall(PyObject* q_object, PyObject* stores, PyObject* mask, PyObject* options, bool described)
      : mask_shape(read_mask_shape(mask)), reader(options), views(described), call(reader.options()) {
    reader.read_numbers();
    q = query_view(views, q_object);
    reader.read_tensors(views);
    if (!call.set_query(q)) raise(call.refusal());
    add_stores(call, views, stores, tensors);
    if (!call.set_options(&mask_shape)) raise(call.refusal());
  }

  const MaskShape mask_shape;
  OptionReader reader;
  Views views;
  Call call;
  TensorView q;
  std::vector<Tensor> tensors;
};

// What attend_sequences and attend_states have in common. states: null, or (states, whole_queries).
py::object attend_runs(PyObject* const* args, PyObject* states) {
  PyObject* const* const tables = items_of(args[2], 3, "the tables");
  PyObject* const* const raw = states ? items_of(states, 2, "the states") : nullptr;
  const int64_t whole_queries = raw ? read_integer(raw[1], "whole_queries") : 0;
  SequenceCall checked(args[0], args[1], tables[2], args[3], false);
  Call& call = checked.call;
  TensorView states_view;
  if (raw) states_view = checked.views.view(raw[0], "states", Role::floats);
  if (states_view.given() && !call.set_states(states_view)) raise(call.refusal());
  add_sequences(call.sequences(checked.mask_shape),
                Table(tables[0], "sequences", raw ? state_sequence_columns : sequence_columns),
                Table(tables[1], "runs", run_columns), raw != nullptr, whole_queries);
  if (!states_view.given()) return compute(call, checked.reader, args[0]);
  without_gil([&] { call.run_to_states(); });
  return py::none();
}

}  // namespace

// Attention of sequences that lie anywhere in q, and whose keys are any runs of any stores.
// stores: a tuple of tuples (name of k, k, name of v, v), three or four axes each.
// tables: (sequences, runs, mask_shape). Rows of sequences: batch, token, queries, padding, origin, offset, keys, mask
// batch, mask key, number of runs; of runs: store, batch, token, count, those of the first sequence first. mask_shape:
// batch, queries and keys that the mask broadcasts to, next to the heads of q.
PyObject* attend_sequences(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    require_arguments("attend_sequences", count, 4);
    return attend_runs(args, nullptr);
  });
}

// What comes of such a call, from shapes and dtypes alone: (q, stores, mask_shape, options), each tensor a tuple
// (shape, name of the dtype): ((out's shape, dtype), (lse's shape, dtype)).
PyObject* infer_sequences(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    require_arguments("infer_sequences", count, 4);
    return described_results(SequenceCall(args[0], args[1], args[2], args[3], true).call);
  });
}

// The same, but that rows are not ended: their raw states go to (states, whole_queries). states: (slots, heads of q,
// queries, v_head_dim + 2), of the compute type; rows of sequences have three more columns, slot, whole_keys and
// mask_query, and no padding, and are some of the whole_queries of their sequence, or all of them if that is 0.
PyObject* attend_states(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    require_arguments("attend_states", count, 5);
    return attend_runs(args, args[4]);
  });
}

// Merges such states, and returns the output of q, or (output, lse); or None, if more states are given to put them in.
// (q, kv_heads, subtrees, (sequences, subtree numbers and slots, whole_queries), options, states or None)
PyObject* merge_subtrees(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    require_arguments("merge_subtrees", count, 6);
    PyObject* const* const tables = items_of(args[3], 3, "the tables");
    const int64_t kv_heads = read_integer(args[1], "kv_heads"), whole = read_integer(tables[2], "whole_queries");
    OptionReader reader(args[4]);
    reader.read_numbers();
    Views views;
    Call call(reader.options());
    const TensorView q = query_view(views, args[0]), subtrees = views.view(args[2], "subtrees", Role::floats);
    reader.read_tensors(views);
    if (!call.set_query(q) || !call.set_subtrees(subtrees, kv_heads) || !call.set_options(nullptr))
      raise(call.refusal());
    const TensorView states = views.view(args[5], "states", Role::floats);
    if (states.given() && !call.set_states(states)) raise(call.refusal());
    add_merges(call.sequences({}), Table(tables[0], "sequences", merge_columns),
               Table(tables[1], "subtrees", subtree_columns), whole);
    if (!states.given()) return compute(call, reader, args[0]);
    without_gil([&] { call.run_to_states(); });
    return py::none();
  });
}

}  // namespace gqa
