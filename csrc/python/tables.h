// tables.h: the tables in which gqa lists sequences whose keys are runs of stores.
#pragma once

#include "views.h"

namespace gqa {

// A C-contiguous int64 array of rows of `columns` numbers.
class Table {
 public:
  Table(PyObject* object, const char* name, int columns);
  int64_t rows() const { return rows_; }
  const int64_t* row(int64_t i) const { return data_ + i * columns_; }

 private:
  py::array array_;
  const int columns_;
  int64_t rows_ = 0;
  const int64_t* data_ = nullptr;
};

// Rows of sequences: batch, token, queries, padding, origin, offset, keys, mask batch, mask key, number of runs, and,
// with states, slot, whole_keys and mask_query; of runs: store, batch, token, count, those of the first sequence first.
constexpr int sequence_columns = 10, state_sequence_columns = 13, run_columns = 4;

// states: whether the rows of the table have the columns slot, whole_keys and mask_query, too.
void add_sequences(SequenceList& list, const Table& sequences, const Table& runs, bool states, int64_t whole_queries);

// Batch, queries and keys that a mask broadcasts to, next to the heads of q.
MaskShape read_mask_shape(PyObject* tuple);

}  // namespace gqa
