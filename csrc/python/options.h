// options.h: gqa.options.Options, a tuple, as Options.
#pragma once

#include <algorithm>

#include "../options.h"
#include "views.h"

namespace gqa {

// The names of the options, in the order in which gqa.options.Options holds them.
py::tuple option_names();

// The options of one call, and the objects behind them.
class OptionReader {
 public:
  explicit OptionReader(PyObject* tuple);

  // Numbers first: reading those may run Python code, which may change arrays.
  void read_numbers();
  void read_tensors(Views& views);

  // A bound that holds besides the window's own.
  void limit_left(int64_t left) { options_.left = std::min(options_.left, left); }

  const Options& options() const { return options_; }
  // The objects of some options.
  PyObject* mask() const;
  PyObject* sinks() const;
  PyObject* out() const;  // None: a new array

 private:
  void read_captured(Views& views);

  PyObject* const tuple_;
  Options options_;
};

}  // namespace gqa
