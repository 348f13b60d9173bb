// products/queries.h: rows of q for products with channels in the lanes.
#pragma once

#include "../output.h"
#include "../scratch.h"

namespace gqa {
namespace GQA_ISA {
namespace {

// q[row][channel], scaled, padded with zeros to whole vectors, and with rows of zeros to a whole group of rows.
template <class T> struct QueryRows {
  static constexpr int w = width<T>;

  int64_t rows, stride;
  T* q;

  QueryRows(const TaskShape& shape, Scratch& scratch)
      : rows(RowStates<T>::padded_rows(shape)),
        stride((shape.head_dim + w - 1) / w * w),
        q(scratch.take<T>(rows * stride)) {}

  T* row(int64_t r) const { return q + r * stride; }

  void load(const Attention& a, const Task& task) const {
    const T scale = query_scale<T>(a);
    const int64_t group = a.query_heads / a.kv_heads;
    for (int64_t i = 0; i < rows * stride; i++) q[i] = 0;
    with_float_type(a.q_type, [&](auto s) {
      using S = decltype(s);
      for (int64_t r = task.row_begin; r < task.row_end; r++) {
        const int64_t head = task.kv_head * group + r % group;
        const S* from = reinterpret_cast<const S*>(at_row(a.q, a.q_strides, *task.sequence, head, r / group));
        T* to = row(r - task.row_begin);
        for (int64_t d = 0; d < a.head_dim; d += w)
          store(to + d, load_row<T, S>(from + d, min(w, a.head_dim - d)) * scale);
      }
    });
  }
};

}  // namespace
}  // namespace GQA_ISA
}  // namespace gqa
