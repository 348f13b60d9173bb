#include "../states.h"

#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "scalars.h"
#include "without_gil.h"

namespace gqa {
namespace {

// An array of floats of that shape, the last axis of which is left out for a log-sum-exp.
py::array state_array(py::handle object, const char* name, const py::array& shaped_as, bool is_lse) {
  const int axes = int(shaped_as.ndim()) - is_lse;
  py::array array = as_array(object, name, axes);
  if (!std::equal(array.shape(), array.shape() + axes, shaped_as.shape()))
    throw py::value_error(std::string(name) + " has shape " + shape_text(array) + ", expected that of the other parts");
  const DType type = float_type(array, name);
  if (is_lse && type != DType::f32 && type != DType::f64)
    throw py::type_error(std::string(name) + " must be float32 or float64");
  return array;
}

void require_apart(const py::array& written, const py::array& read) {
  if (share_memory(written, read)) throw py::value_error("out overlaps an input in memory");
}

// Shapes and strides as they are now: an array may be given others while it is read.
class Sizes {
 public:
  const int64_t* copy(const py::ssize_t* sizes, int64_t axes) {
    return copies_.emplace_back(sizes, sizes + axes).data();
  }

 private:
  std::vector<std::vector<int64_t>> copies_;
};

// Writes into out, and lse, which has the shape of out less its last axis.
void merge_states(const py::tuple& outs, const py::tuple& lses, py::handle out_object, py::handle lse_object,
                  py::handle num_threads) {
  StateMerge m{};
  m.threads = read_threads(num_threads.ptr(), "num_threads");
  if (outs.empty() || outs.size() != lses.size()) throw py::value_error("there must be as many lses as outs");
  if (!py::isinstance<py::array>(out_object)) throw py::type_error("out must be a NumPy array");
  py::array out = py::reinterpret_borrow<py::array>(out_object);
  if (out.ndim() < 1 || out.ndim() > max_state_axes + 1) throw py::value_error("out must have 1 to 64 axes");
  py::array lse = state_array(lse_object, "lse", out, true);
  require_output(out, "out");
  require_output(lse, "lse");
  require_apart(out, lse);

  Sizes sizes;
  std::vector<py::array> inputs;
  std::vector<State> parts;
  m.axes = int(lse.ndim());
  for (size_t i = 0; i < outs.size(); i++) {
    const py::array x = state_array(outs[i], "outs", out, false), y = state_array(lses[i], "lses", out, true);
    for (const py::array& input : {x, y}) {
      require_apart(out, input);
      require_apart(lse, input);
      inputs.push_back(input);
    }
    parts.push_back({static_cast<const char*>(x.data()), static_cast<const char*>(y.data()), float_type(x, "outs"),
                     float_type(y, "lses"), sizes.copy(x.strides(), m.axes + 1), sizes.copy(y.strides(), m.axes)});
  }
  m.shape = sizes.copy(out.shape(), m.axes);
  m.channels = out.shape(m.axes);
  m.parts = parts.data();
  m.part_count = int64_t(parts.size());
  m.out = static_cast<char*>(out.mutable_data());
  m.lse = static_cast<char*>(lse.mutable_data());
  m.out_type = float_type(out, "out");
  m.lse_type = float_type(lse, "lse");
  m.out_strides = sizes.copy(out.strides(), m.axes + 1);
  m.lse_strides = sizes.copy(lse.strides(), m.axes);
  without_gil([&] { merge(m); });
}

}  // namespace

void bind_states(py::module_& m) { m.def("merge_states", &merge_states); }

}  // namespace gqa
