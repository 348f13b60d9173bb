// attention.cpp: the extension's functions `attention`, `infer_shapes` and `attend_sequences`.
//
// Plain functions of Python's C API: a call of a few microseconds would feel pybind11's dispatcher.
#include <algorithm>
#include <new>
#include <string>

#include "bindings.h"
#include "options.h"
#include "refusals.h"
#include "scalars.h"

namespace gqa {
namespace {

// Calls `work`, which returns a py::object, with its C++ exceptions as Python's.
template <class F> PyObject* guarded(const F& work) {
  try {
    return work().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

void require_arguments(const char* function, Py_ssize_t count, Py_ssize_t expected) {
  if (count != expected)
    throw py::type_error(std::string(function) + " takes " + std::to_string(expected) + " arguments, not " +
                         std::to_string(count));
}

// The items of a tuple of so many.
PyObject* const* items_of(PyObject* tuple, Py_ssize_t count, const char* what) {
  if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != count)
    throw py::type_error(std::string(what) + " must be a tuple of " + std::to_string(count));
  return &PyTuple_GET_ITEM(tuple, 0);
}

TensorView query_view(Views& views, PyObject* q) {
  if (is_quantized(q)) refuse(Rule::quantized, "q");
  const TensorView view = views.view(q, "q", Role::floats);
  if (!view.given()) refuse(Rule::tensor_kind, "q", py::none());
  return view;
}

py::array new_array(const Shape& shape, py::dtype dtype) {
  return py::array(std::move(dtype), std::vector<py::ssize_t>(shape.sizes, shape.sizes + shape.axes));
}

// The dtype of the output: q's own where it can be, since bfloat16 is another package's.
py::dtype out_dtype(DType type, PyObject* q) {
  if (is_array(q)) {
    const py::dtype dtype = py::reinterpret_borrow<py::array>(q).dtype();
    if (type == type_of(dtype)) return dtype;
  }
  return type == DType::f32 ? py::dtype::of<float>() : dtype_of(type);
}

// The output, or (output, lse).
py::object compute(Call& call, const OptionReader& reader, PyObject* q) {
  const Options& options = reader.options();
  py::object out;
  TensorView out_view = options.out, lse_view;
  if (out_view.given()) {
    out = py::reinterpret_borrow<py::object>(reader.out());
  } else {
    const py::array array = new_array(call.out_shape(), out_dtype(call.out_type(), q));
    out_view = view_of(array);
    out = array;
  }
  py::array lse;
  if (options.return_lse) {
    lse = new_array(call.lse_shape(), call.lse_type() == DType::f64 ? py::dtype::of<double>() : py::dtype::of<float>());
    lse_view = view_of(lse);
  }
  {
    py::gil_scoped_release release;
    call.run(out_view, lse_view);
  }
  if (options.return_lse) return py::make_tuple(std::move(out), std::move(lse));
  return out;
}

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

// Numbers of which only the shape may be known: a tuple (shape, name of the dtype) of integers.
IntegerList described_integers(PyObject* object, const char* name) {
  if (!PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) != 2 || !PyTuple_CheckExact(PyTuple_GET_ITEM(object, 0)))
    return IntegerList(object, name);
  const py::object dtype = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(object, 1));
  const auto type = dtype.cast<std::string>();
  if (type.rfind("int", 0) != 0 && type.rfind("uint", 0) != 0) refuse(Rule::integer_dtype, name, dtype);
  const auto sizes = py::reinterpret_borrow<py::tuple>(PyTuple_GET_ITEM(object, 0));
  Shape shape{int(sizes.size()), {}};
  for (int i = 0; i < std::min(shape.axes, most_axes); i++) shape.sizes[i] = sizes[size_t(i)].cast<int64_t>();
  return IntegerList(shape);
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
    const auto described = [](const Shape& shape, DType type) {
      return py::make_tuple(as_tuple(shape), name_of(type));
    };
    return py::make_tuple(described(call.out_shape(), call.out_type()), described(call.lse_shape(), call.lse_type()));
  });
}

// A C-contiguous int64 array of rows of `columns` numbers.
class Table {
 public:
  Table(PyObject* object, const char* name, int columns) : columns_(columns) {
    if (is_array(object)) array_ = py::reinterpret_borrow<py::array>(object);
    if (!is_array(object) || array_.ndim() != 2 || !array_.dtype().equal(py::dtype::of<int64_t>()) ||
        array_.shape(1) != columns || !(array_.flags() & py::array::c_style))
      refuse(Rule::table, name, py::int_(columns));
    rows_ = array_.shape(0);
    data_ = static_cast<const int64_t*>(array_.data());
  }
  int64_t rows() const { return rows_; }
  const int64_t* row(int64_t i) const { return data_ + i * columns_; }

 private:
  py::array array_;
  const int columns_;
  int64_t rows_ = 0;
  const int64_t* data_ = nullptr;
};

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

void add_sequences(SequenceList& list, const Table& sequences, const Table& runs) {
  list.reserve(sequences.rows(), runs.rows());
  int64_t run = 0;
  for (int64_t i = 0; i < sequences.rows(); i++) {
    const int64_t* s = sequences.row(i);
    if (s[9] < 0 || s[9] > runs.rows() - run) refuse(Rule::rows, "runs");
    for (const int64_t end = run + s[9]; run < end; run++) {
      const int64_t* r = runs.row(run);
      if (!list.add_run(r[0], r[1], r[2], r[3])) raise(list.refusal());
    }
    Sequence sequence{};
    sequence.batch = s[0], sequence.token = s[1], sequence.queries = s[2], sequence.padding = s[3];
    sequence.origin = s[4], sequence.offset = s[5], sequence.keys = s[6];
    sequence.mask_batch = s[7], sequence.mask_key = s[8];
    if (!list.add_sequence(sequence)) raise(list.refusal());
  }
}

// Attention of sequences that lie anywhere in q, and whose keys are any runs of any stores.
// stores: a tuple of tuples (name of k, k, name of v, v), three or four axes each.
// tables: (sequences, runs, mask_shape). Rows of sequences: batch, token, queries, padding, origin, offset, keys, mask
// batch, mask key, number of runs; of runs: store, batch, token, count, those of the first sequence first. mask_shape:
// batch, queries and keys that the mask broadcasts to, next to the heads of q.
PyObject* attend_sequences(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    require_arguments("attend_sequences", count, 4);
    PyObject* const* const tables = items_of(args[2], 3, "the tables");
    PyObject* const* const sizes = items_of(tables[2], 3, "the mask's shape");
    const MaskShape mask_shape{read_integer(sizes[0], "mask_shape"), read_integer(sizes[1], "mask_shape"),
                               read_integer(sizes[2], "mask_shape")};
    OptionReader reader(args[3]);
    reader.read_numbers();
    Views views;
    Call call(reader.options());
    const TensorView q = query_view(views, args[0]);
    reader.read_tensors(views);
    if (!call.set_query(q)) raise(call.refusal());
    std::vector<Tensor> tensors;
    add_stores(call, views, args[1], tensors);
    if (!call.set_options(&mask_shape)) raise(call.refusal());
    add_sequences(call.sequences(mask_shape), Table(tables[0], "sequences", 10), Table(tables[1], "runs", 4));
    return compute(call, reader, args[0]);
  });
}

template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyMethodDef method(const char* name, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, doc};
}

PyMethodDef methods[] = {
    method<attention>("attention", "gqa.attention, once its arguments are in order."),
    method<infer_shapes>("infer_shapes", "gqa.infer_shapes, the same."),
    method<attend_sequences>("attend_sequences", "Attention of sequences whose keys are runs of stores."),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_attention(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
  m.attr("OPTIONS") = option_names();
  m.attr("RULES") = rule_names();
}

}  // namespace gqa
