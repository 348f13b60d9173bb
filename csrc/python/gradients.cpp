// gradients.cpp: the extension's functions of the backward pass.
#include "../gradient_call.h"

#include "calls.h"
#include "refusals.h"
#include "scalars.h"
#include "tables.h"
#include "without_gil.h"

namespace gqa {
namespace {

// The tensors that every such function takes first: (dout, q, k, v, out, lse, dlse).
struct Tensors {
  explicit Tensors(PyObject* tuple, bool described = false)
      : objects(items_of(tuple, 7, "the tensors")), views(described) {}

  // After the numbers of all arguments. mask_shape: as for Call::set_options.
  void check(GradientCall& call, OptionReader& options, bool mask_grad, const MaskShape* mask_shape) {
    q = view(1, "q");
    k.name = "k", k.data = view(2, "k");
    v.name = "v", v.data = view(3, "v");
    given.dout = view(0, "dout"), given.out = view(4, "out");
    given.lse = view(5, "lse");
    if (objects[6] != Py_None) given.dlse = view(6, "dlse");
    options.read_tensors(views);
    if (!call.set_query(q)) raise(call.refusal());
    if (mask_shape ? !call.add_store(k, v) : !call.set_keys(k, v, Tensor{}, Tensor{})) raise(call.refusal());
    const ScoreProgram* const program = options.options().program;
    if (program && program->result(output_score) >= 0 && program->result(output_slope) < 0)
      throw py::value_error("the program gives no slope");
    if (!call.set_options(mask_shape) || !call.set_given(given, mask_grad)) raise(call.refusal());
  }

  PyObject* const* const objects;
  Views views;
  TensorView q;
  Tensor k, v;
  GradientCall::Given given;

 private:
  TensorView view(int i, const char* name) {
    if (is_quantized(objects[i])) refuse(Rule::quantized, name);
    const TensorView x = views.view(objects[i], name, Role::floats);
    if (!x.given()) refuse(Rule::tensor_kind, name, py::none());
    return x;
  }
};

// (dq, dk, dv, dmask, dsinks), each None where there is no such argument.
py::object compute_gradients(GradientCall& call, const OptionReader& reader, const Tensors& tensors) {
  const Options& options = reader.options();
  TensorView views[5];
  py::object results[5] = {py::none(), py::none(), py::none(), py::none(), py::none()};
  const auto make = [&](int i, const TensorView& like, PyObject* object) {
    const py::array array = new_array(like.whole_shape(), like.type, object);
    views[i] = view_of(array);
    results[i] = array;
  };
  make(0, tensors.q, tensors.objects[1]);
  make(1, tensors.k.data, tensors.objects[2]);
  make(2, tensors.v.data, tensors.objects[3]);
  if (call.has_dmask()) make(3, options.mask, reader.mask());
  if (call.has_dsinks()) make(4, options.sinks, reader.sinks());
  without_gil([&] { call.run(views[0], views[1], views[2], views[3], views[4]); });
  return py::make_tuple(results[0], results[1], results[2], results[3], results[4]);
}

// The arguments of gqa.attention_vjp: (dout, q, k, v, out, lse, dlse), query_offset, kv_lengths, mask_grad, options.
PyObject* attention_vjp(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    require_arguments("attention_vjp", count, 5);
    const IntegerList query_offset(args[1], "query_offset"), kv_lengths(args[2], "kv_lengths");
    const bool mask_grad = read_flag(args[3], "mask_grad");
    OptionReader options(args[4]);
    options.read_numbers();
    Tensors tensors(args[0]);
    GradientCall call(options.options());
    tensors.check(call, options, mask_grad, nullptr);
    if (!call.check_positions(kv_lengths.view(), query_offset.view()) ||
        !call.list_batch(kv_lengths.view(), query_offset.view()))
      raise(call.refusal());
    return compute_gradients(call, options, tensors);
  });
}

// The same arguments, each tensor a tuple (shape, name of the dtype): raises what attention_vjp would.
PyObject* check_attention_vjp(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    require_arguments("check_attention_vjp", count, 5);
    const IntegerList query_offset = described_integers(args[1], "query_offset"),
                      kv_lengths = described_integers(args[2], "kv_lengths");
    const bool mask_grad = read_flag(args[3], "mask_grad");
    OptionReader options(args[4]);
    options.read_numbers();
    Tensors tensors(args[0], true);
    GradientCall call(options.options());
    tensors.check(call, options, mask_grad, nullptr);
    if (!call.check_positions(kv_lengths.view(), query_offset.view())) raise(call.refusal());
    return py::none();
  });
}

// The same for sequences: (dout, q, k, v, out, lse, dlse), tables as in attend_sequences, options. Each sequence has
// one run at most, and no two have a key in common.
PyObject* sequences_vjp(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    require_arguments("sequences_vjp", count, 3);
    PyObject* const* const tables = items_of(args[1], 3, "the tables");
    const MaskShape mask_shape = read_mask_shape(tables[2]);
    OptionReader options(args[2]);
    options.read_numbers();
    Tensors tensors(args[0]);
    GradientCall call(options.options());
    tensors.check(call, options, false, &mask_shape);
    add_sequences(call.sequences(mask_shape), Table(tables[0], "sequences", sequence_columns),
                  Table(tables[1], "runs", run_columns), false, 0);
    return compute_gradients(call, options, tensors);
  });
}

// The same of shapes and dtypes alone: tensors, mask_shape, options.
PyObject* check_sequences_vjp(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    require_arguments("check_sequences_vjp", count, 3);
    const MaskShape mask_shape = read_mask_shape(args[1]);
    OptionReader options(args[2]);
    options.read_numbers();
    Tensors tensors(args[0], true);
    GradientCall call(options.options());
    tensors.check(call, options, false, &mask_shape);
    return py::none();
  });
}

PyMethodDef methods[] = {
    method<attention_vjp>("attention_vjp", "gqa.attention_vjp, once its arguments are in order."),
    method<check_attention_vjp>("check_attention_vjp", "The same of shapes and dtypes alone: raises what it would."),
    method<sequences_vjp>("sequences_vjp", "gqa.varlen_attention_vjp, the same."),
    method<check_sequences_vjp>("check_sequences_vjp", "The same of shapes and dtypes alone: raises what it would."),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_gradients(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace gqa
