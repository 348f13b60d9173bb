// pages.cpp: the extension's functions for gqa.PagedKVCache, `append_pages` and `attend_pages`: checks, attention and
// the rows that are written, in one call.
#include "../pages.h"

#include <algorithm>
#include <numeric>

#include "../plan.h"
#include "bindings.h"
#include "caches.h"
#include "refusals.h"

namespace gqa {
namespace {

// The pool: (keys, values, page_size, reserve), the tensors as (pages, page_size, heads, channels). reserve(sequences,
// counts) is Python's: it gives the sequences pages of their own for their new tokens, or raises.
struct Pool {
  explicit Pool(PyObject* tuple)
      : items(items_of(tuple, 4, "the pool")), page_size(read_integer(items[2], "page_size")) {
    if (page_size < 1) throw py::value_error("page_size must be at least 1");
  }
  void read(Views& views) {
    keys = views.tensor(items[0], "the cached k");
    values = views.tensor(items[1], "the cached v");
  }

  PyObject* const* const items;
  const int64_t page_size;
  Tensor keys, values;
};

// Python's sequences: a list of objects with `pages`, an array of int64, and `length`.
class Sequences {
 public:
  explicit Sequences(PyObject* list) : list_(list), size_(PyList_CheckExact(list) ? PyList_GET_SIZE(list) : -1) {
    if (size_ < 0) throw py::type_error("the sequences must be a list");
  }
  PyObject* list() const { return list_; }
  Py_ssize_t size() const { return size_; }

  // queries, counts: how many queries each has, and how many new tokens; null: none. Pages are copied: nothing that
  // Python does later moves them.
  std::vector<PagedSequence> read(const int64_t* queries, const int64_t* counts, const Pool& pool) {
    if (PyList_GET_SIZE(list_) != size_) throw py::value_error("the list of sequences has changed");
    std::vector<PagedSequence> all(size_t(size_), PagedSequence{});
    pages_.resize(all.size());
    for (size_t i = 0; i < all.size(); i++) {
      read_pages(i);
      PagedSequence& s = all[i];
      s.pages = pages_[i].data(), s.page_count = int64_t(pages_[i].size());
      s.length = length(i);
      s.queries = queries ? queries[i] : 0;
      s.count = counts ? counts[i] : 0;
      const bool within = std::all_of(pages_[i].begin(), pages_[i].end(),
                                      [&](int64_t page) { return page >= 0 && page < pool.keys.data.shape[0]; });
      if (!within || s.length < 0 || s.length > max_tokens - s.count ||
          ceil_div(s.length + s.count, pool.page_size) > s.page_count)
        throw py::value_error("a sequence has fewer pages than its tokens need, or pages that are not in the pool");
    }
    return all;
  }

  int64_t length(size_t i) const { return read_integer(attribute(i, length_name()).ptr(), "length"); }

  void set_lengths(const std::vector<PagedSequence>& all) const {
    for (size_t i = 0; i < all.size(); i++) {
      const py::int_ length(all[i].length + all[i].count);
      if (PyObject_SetAttr(item(i), length_name(), length.ptr()) != 0) throw py::error_already_set();
    }
  }

 private:
  static PyObject* length_name() {
    static PyObject* const name = PyUnicode_InternFromString("length");
    return name;
  }
  static PyObject* pages_name() {
    static PyObject* const name = PyUnicode_InternFromString("pages");
    return name;
  }
  PyObject* item(size_t i) const { return PyList_GET_ITEM(list_, Py_ssize_t(i)); }
  py::object attribute(size_t i, PyObject* name) const {
    PyObject* const value = PyObject_GetAttr(item(i), name);
    if (!value) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
  }
  void read_pages(size_t i) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(attribute(i, pages_name()).ptr(), &buffer, PyBUF_SIMPLE) != 0) throw py::error_already_set();
    const auto* const pages = static_cast<const int64_t*>(buffer.buf);
    pages_[i].assign(pages, pages + buffer.len / Py_ssize_t(sizeof(int64_t)));
    PyBuffer_Release(&buffer);
  }

  PyObject* const list_;
  const Py_ssize_t size_;
  std::vector<std::vector<int64_t>> pages_;
};

int64_t sum_of(const Integers& counts) {
  return std::accumulate(counts.values, counts.values + counts.shape.sizes[0], int64_t(0));
}

// Checks new tokens, sum(counts) of them, and converts them to what is stored.
void accept(Append& append, const NewTokens& tokens, const Integers& counts, const TensorView& out) {
  const int64_t sum = sum_of(counts);
  if (!append.check(tokens.k, tokens.v, 3, 1, sum) || !append.spares_inputs(out)) raise(append.refusal());
  bool finite;
  {
    py::gil_scoped_release release;
    finite = append.convert(&sum);
  }
  if (!finite) raise(append.refusal());
}

void reserve(const Pool& pool, const Sequences& sequences, const NewTokens& tokens) {
  py::handle(pool.items[3])(py::handle(sequences.list()), py::handle(tokens.items[2]));
}

void write(const Append& append, const std::vector<PagedSequence>& all, const Sequences& sequences, const Pool& pool) {
  {
    py::gil_scoped_release release;
    append.write(page_moves(all, pool.page_size));
  }
  sequences.set_lengths(all);
}

// `lengths` of new tokens is a list, checked: as many numbers as there are sequences, none negative.
Integers checked(const IntegerList& lengths, const Sequences& sequences) {
  const Integers list = lengths.view();
  if (list.shape.axes != 1 || list.shape.sizes[0] != sequences.size())
    throw py::value_error("lengths must be a list with a number for each sequence");
  return list;
}

PyObject* append_pages(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    require_arguments("append_pages", count, 3);
    NewTokens tokens(args[0]);
    Sequences sequences(args[1]);
    Pool pool(args[2]);
    const Integers counts = checked(tokens.lengths, sequences);
    if (!tokens.given()) refuse(Rule::tensor_kind, "k", py::none());
    Views views;
    tokens.read(views);
    pool.read(views);
    Append append(pool.keys, pool.values, bshd);
    accept(append, tokens, counts, {});
    reserve(pool, sequences, tokens);
    write(append, sequences.read(nullptr, counts.values, pool), sequences, pool);
    return py::none();
  });
}

// tokens: (k, v, q_lengths): as many new tokens as queries, or none.
PyObject* attend_pages(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded([&] {
    require_arguments("attend_pages", count, 5);
    NewTokens tokens(args[1]);
    Sequences sequences(args[2]);
    Pool pool(args[3]);
    OptionReader reader(args[4]);
    reader.read_numbers();
    const Integers queries = checked(tokens.lengths, sequences);
    Views views;
    tokens.read(views);
    pool.read(views);
    const TensorView q = query_view(views, args[0]);
    reader.read_tensors(views);
    check_query(q, pool.keys.data, 3, bshd);
    const int64_t batch = sequences.size(), sum = sum_of(queries);
    if (q.shape[0] != sum) refuse_size(Rule::packed, "q", "", q.shape[0], sum, "q_lengths");

    MaskShape mask_shape{batch, 0, 0};
    for (int64_t i = 0; i < batch; i++) {
      mask_shape.queries = std::max(mask_shape.queries, queries.values[i]);
      const int64_t added = tokens.given() ? queries.values[i] : 0;
      mask_shape.keys = std::max(mask_shape.keys, sequences.length(size_t(i)) + added);
    }
    Append append(pool.keys, pool.values, bshd);
    Call call(reader.options());
    if (!call.set_query(q) || !call.add_store(pool.keys, pool.values)) raise(call.refusal());
    if (tokens.given()) accept(append, tokens, queries, reader.options().out);
    if ((tokens.given() && !call.add_store(append.k(), append.v())) || !call.set_options(&mask_shape))
      raise(call.refusal());
    if (tokens.given()) reserve(pool, sequences, tokens);
    const std::vector<PagedSequence> all =
        sequences.read(queries.values, tokens.given() ? queries.values : nullptr, pool);
    SequenceList& list = call.sequences(mask_shape);
    if (!list_pages(all, pool.page_size, list)) raise(list.refusal());
    py::object result = compute(call, reader, args[0]);
    if (tokens.given()) write(append, all, sequences, pool);
    return result;
  });
}

PyMethodDef methods[] = {
    method<append_pages>("append_pages", "gqa.PagedKVCache.append, in place."),
    method<attend_pages>("attend_pages", "gqa.PagedKVCache.attend: attention, and the new tokens written."),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

void bind_pages(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace gqa
