// without_gil.h: native work while other Python threads run, that Ctrl-C can end.
#pragma once

#include <pybind11/pybind11.h>

#include "../parallel.h"

namespace gqa {

// Runs the handlers of signals that came; true if one raised, with that error set.
inline bool signal_raised() {
  const pybind11::gil_scoped_acquire acquire;
  return PyErr_CheckSignals() != 0;
}

// Throws what a signal's handler raises. What `work` writes is then not all written.
template <class F> void without_gil(const F& work) {
  bool given_up;
  {
    const pybind11::gil_scoped_release release;
    const Interruption interruption(signal_raised);
    work();
    given_up = interruption.happened();
  }
  if (given_up) throw pybind11::error_already_set();
}

}  // namespace gqa
