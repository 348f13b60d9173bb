#include "states.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "threads.h"

namespace gqa {
namespace {

double value_of(const char* p, DType type) {
  double x;
  float narrow;
  if (type == DType::f64) return std::memcpy(&x, p, sizeof x), x;
  return std::memcpy(&narrow, p, sizeof narrow), double(narrow);
}

void write(char* p, DType type, double x) {
  const float narrow = float(x);
  if (type == DType::f64) std::memcpy(p, &x, sizeof x);
  else std::memcpy(p, &narrow, sizeof narrow);
}

// Merges rows, those along the last of their axes one after another.
class Merger {
 public:
  // Where the rows of one part are, and what they weigh.
  struct Place {
    const char *out, *lse;
    double logit;
  };

  // places, terms: scratch, one for each part.
  Merger(const StateMerge& m, const Kernels& kernels, Place* places, WeightedRow* terms)
      : m_(m), kernels_(kernels), places_(places), terms_(terms) {}

  void run(int64_t begin, int64_t end) {
    const int last = m_.axes - 1;
    int64_t index[max_state_axes], rest = begin;
    for (int axis = last; axis >= 0; axis--) {
      index[axis] = rest % m_.shape[axis];
      rest /= m_.shape[axis];
    }
    while (begin < end) {
      seek(index);
      const int64_t count = m_.axes == 0 ? 1 : std::min(end - begin, m_.shape[last] - index[last]);
      for (int64_t i = 0; i < count; i++) {
        merge_row();
        if (last >= 0) step(last);
      }
      begin += count;
      if (last >= 0) index[last] = 0;
      for (int axis = last - 1; axis >= 0 && ++index[axis] == m_.shape[axis]; axis--) index[axis] = 0;
    }
  }

 private:
  int64_t offset(const int64_t* index, const int64_t* strides) const {
    int64_t bytes = 0;
    for (int axis = 0; axis < m_.axes; axis++) bytes += index[axis] * strides[axis];
    return bytes;
  }
  void seek(const int64_t* index) {
    for (int64_t i = 0; i < m_.part_count; i++) {
      const State& part = m_.parts[i];
      places_[i].out = part.out + offset(index, part.out_strides);
      places_[i].lse = part.lse + offset(index, part.lse_strides);
    }
    out_ = m_.out + offset(index, m_.out_strides);
    lse_ = m_.lse + offset(index, m_.lse_strides);
  }
  void step(int axis) {
    for (int64_t i = 0; i < m_.part_count; i++) {
      places_[i].out += m_.parts[i].out_strides[axis];
      places_[i].lse += m_.parts[i].lse_strides[axis];
    }
    out_ += m_.out_strides[axis];
    lse_ += m_.lse_strides[axis];
  }

  void merge_row() {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    double top = -infinity;
    for (int64_t i = 0; i < m_.part_count; i++) {
      places_[i].logit = value_of(places_[i].lse, m_.parts[i].lse_type);
      top = std::max(top, places_[i].logit);
    }
    if (top == -infinity) top = 0;  // no part has keys
    // What weighs nothing is left out: it may be NaN.
    WeightedSum sum{terms_, 0, m_.channels, 0, out_, m_.out_strides[m_.axes], m_.out_type};
    for (int64_t i = 0; i < m_.part_count; i++) {
      const State& part = m_.parts[i];
      const double weight = std::exp(places_[i].logit - top);
      if (weight == 0) continue;
      terms_[sum.count++] = {places_[i].out, part.out_strides[m_.axes], part.out_type, weight};
      sum.divisor += weight;
    }
    write(lse_, m_.lse_type, top + std::log(sum.divisor));
    if (sum.count == 0) sum.divisor = 1;
    kernels_.add_weighted(sum);
  }

  const StateMerge& m_;
  const Kernels& kernels_;
  Place* const places_;
  WeightedRow* const terms_;
  char *out_ = nullptr, *lse_ = nullptr;
};

}  // namespace

void merge(const StateMerge& m) {
  if (std::find(m.shape, m.shape + m.axes, 0) != m.shape + m.axes) return;  // beside it sizes may be of any product
  int64_t rows = 1;
  for (int axis = 0; axis < m.axes; axis++) rows *= m.shape[axis];
  // Time on one thread: what is read and written, and an exponential for each part.
  constexpr double bytes_per_us = 10e3, exponentials_per_us = 100;
  double row_bytes = double(m.channels * bytes_of(m.out_type));
  for (int64_t i = 0; i < m.part_count; i++) row_bytes += double(m.channels * bytes_of(m.parts[i].out_type));
  const double cost = double(rows) * (row_bytes / bytes_per_us + double(m.part_count) / exponentials_per_us);
  const int threads = int(std::min<int64_t>(threads_worth(cost, m.threads), rows));

  std::vector<Merger::Place> places(size_t(threads * m.part_count));
  std::vector<WeightedRow> terms(size_t(threads * m.part_count));
  const Kernels& kernels = active_kernels();  // the same for all rows, whatever is chosen meanwhile
  const int64_t pieces = threads > 1 ? std::min<int64_t>(4 * threads, rows) : 1;
  parallel_for(pieces, threads, [&](int64_t i, int thread) {
    const size_t scratch = size_t(thread * m.part_count);
    Merger(m, kernels, &places[scratch], &terms[scratch]).run(rows * i / pieces, rows * (i + 1) / pieces);
  });
}

}  // namespace gqa
