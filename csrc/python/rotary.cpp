#include "../rotary.h"

#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "scalars.h"
#include "without_gil.h"

namespace gqa {
namespace {

// Rows of cos or sin, one for each position.
py::array table(py::handle object, const char* name) {
  py::array array = as_array(object, name, 2);
  require_contiguous_channels(array, name);
  return array;
}

// Sets where the tokens of x stand. positions: an int, that of the first token, or a C-contiguous int64 array
// (1 or batch, tokens), which is copied: another thread could change it once it is checked.
void set_positions(Rotary& r, py::handle positions, int64_t rows, std::vector<int64_t>& copy) {
  if (!py::isinstance<py::array>(positions)) {
    r.first_position = read_integer(positions.ptr(), "positions");
    if (r.first_position < 0 || r.first_position > rows - r.tokens)
      throw py::value_error("positions are beyond the rows of cos and sin");
    return;
  }
  const py::array array = as_array(positions, "positions", 2);
  if (!array.dtype().equal(py::dtype::of<int64_t>()) || !(array.flags() & py::array::c_style) ||
      (array.shape(0) != 1 && array.shape(0) != r.batch) || array.shape(1) != r.tokens)
    throw py::value_error("positions must be C-contiguous int64, one for each token of x");
  const int64_t* first = static_cast<const int64_t*>(array.data());
  copy.assign(first, first + array.size());
  for (const int64_t position : copy)
    if (position < 0 || position >= rows)
      throw py::value_error("positions has " + std::to_string(position) + ", expected 0 to " +
                            std::to_string(rows - 1) + ", the rows of cos and sin");
  r.positions = copy.data();
  r.position_stride = array.shape(0) == 1 ? 0 : r.tokens;
}

// x: four axes in `layout`; cos and sin (positions, rotary_dim / 2). Returns a new array.
py::object rotary(py::handle x_object, py::handle cos_object, py::handle sin_object, py::handle positions,
                  py::handle interleaved, py::handle layout_name, py::handle num_threads) {
  Rotary r{};
  r.interleaved = read_flag(interleaved.ptr(), "interleaved");
  r.threads = read_threads(num_threads.ptr(), "num_threads");
  const Layout layout = read_layout(layout_name.ptr(), "layout");
  const py::array x = as_array(x_object, "x", 4), cos = table(cos_object, "cos"), sin = table(sin_object, "sin");
  r.type = float_type(x, "x"), r.cos_type = float_type(cos, "cos"), r.sin_type = float_type(sin, "sin");
  require_contiguous_channels(x, "x");
  r.batch = x.shape(0), r.heads = x.shape(layout.head), r.tokens = x.shape(layout.token), r.head_dim = x.shape(3);
  r.rotary_dim = 2 * cos.shape(1);
  if (r.rotary_dim > r.head_dim || sin.shape(0) != cos.shape(0) || sin.shape(1) != cos.shape(1))
    throw py::value_error("cos and sin do not fit x");
  r.cos = static_cast<const char*>(cos.data()), r.cos_stride = cos.strides(0);
  r.sin = static_cast<const char*>(sin.data()), r.sin_stride = sin.strides(0);
  std::vector<int64_t> copied_positions;
  set_positions(r, positions, cos.shape(0), copied_positions);

  py::array out(x.dtype(), std::vector<py::ssize_t>(x.shape(), x.shape() + 4));
  r.x = static_cast<const char*>(x.data()), r.out = static_cast<char*>(out.mutable_data());
  r.x_strides = strides_of(x, layout), r.out_strides = strides_of(out, layout);
  if (out.size() > 0) without_gil([&] { rotate(r); });
  return std::move(out);
}

}  // namespace

void bind_rotary(py::module_& m) { m.def("rotary", &rotary); }

}  // namespace gqa
