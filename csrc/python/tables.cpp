#include "tables.h"

#include "calls.h"
#include "refusals.h"

namespace gqa {

Table::Table(PyObject* object, const char* name, int columns) : columns_(columns) {
  if (is_array(object)) array_ = py::reinterpret_borrow<py::array>(object);
  if (!is_array(object) || array_.ndim() != 2 || !array_.dtype().equal(py::dtype::of<int64_t>()) ||
      array_.shape(1) != columns || !(array_.flags() & py::array::c_style))
    refuse(Rule::table, name, py::int_(columns));
  rows_ = array_.shape(0);
  data_ = static_cast<const int64_t*>(array_.data());
}

void add_sequences(SequenceList& list, const Table& sequences, const Table& runs, bool states, int64_t whole_queries) {
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
    sequence.whole_queries = whole_queries;
    if (states) {
      const int64_t* const more = s + sequence_columns;
      sequence.slot = more[0], sequence.whole_keys = more[1], sequence.mask_query = more[2];
    }
    if (!list.add_sequence(sequence)) raise(list.refusal());
  }
}

MaskShape read_mask_shape(PyObject* tuple) {
  PyObject* const* const sizes = items_of(tuple, 3, "the mask's shape");
  return {read_integer(sizes[0], "mask_shape"), read_integer(sizes[1], "mask_shape"),
          read_integer(sizes[2], "mask_shape")};
}

}  // namespace gqa
