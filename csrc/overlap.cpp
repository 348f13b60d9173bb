// overlap.cpp: whether two tensors share a byte of memory.
//
// The addresses of a tensor's bytes are base + sum of stride * index over its axes + a byte of the element. Two tensors
// share a byte if such sums can be equal: a search over the indices of both, the largest strides first. What the axes
// that are left can still add bounds each index, so that ordinary tensors, whose axes lie within one another, leave one
// or two choices for each.
#include <algorithm>

#include "tensor.h"

namespace gqa {
namespace {

// Sums stay below this; a tensor that does not lie in so many bytes is not there at all.
constexpr int64_t max_bytes = int64_t(1) << 60;

// One index: 0 to `most`, `stride` bytes apart.
struct Term {
  int64_t stride, most;
};

struct Span {
  intptr_t low, high;  // first byte, and behind the last one
  bool valid;
};

// Adds the indices of a tensor to `terms`, each counted from its end at the lower address; returns what it spans.
Span span(const TensorView& x, Term* terms, int& count) {
  if (x.axes > max_axes) return {0, 0, false};
  intptr_t low = reinterpret_cast<intptr_t>(x.data);
  int64_t reach = bytes_of(x.type) - 1;
  for (int axis = 0; axis < x.axes; axis++) {
    const int64_t stride = x.strides[axis], most = x.shape[axis] - 1;
    if (most == 0 || stride == 0) continue;
    int64_t extent;
    if (__builtin_mul_overflow(stride, most, &extent) || extent > max_bytes || extent < -max_bytes || reach > max_bytes)
      return {0, 0, false};
    if (extent < 0) low += extent;
    reach += extent < 0 ? -extent : extent;
    terms[count++] = {stride < 0 ? -stride : stride, most};
  }
  terms[count++] = {1, bytes_of(x.type) - 1};
  return {low, low + reach + 1, true};
}

class Search {
 public:
  Search(Term* terms, int count) : terms_(terms) {
    std::sort(terms, terms + count, [](const Term& x, const Term& y) { return x.stride > y.stride; });
    for (int i = 0; i < count; i++) {
      if (count_ > 0 && terms[count_ - 1].stride == terms[i].stride)
        terms[count_ - 1].most += terms[i].most;  // two indices that are as good as one
      else terms[count_++] = terms[i];
    }
    for (int i = count_ - 1; i >= 0; i--) rest_[i] = rest_[i + 1] + terms[i].stride * terms[i].most;
  }

  // Whether the terms from the i-th on can add up to `sum`; true as well once that has taken too long.
  bool reaches(int64_t sum, int i = 0) {
    if (sum < 0 || sum > rest_[i]) return false;
    if (i == count_ || sum == 0 || sum == rest_[i]) return true;
    if (--steps_ < 0) return true;
    const Term& term = terms_[i];
    const int64_t least = std::max<int64_t>(0, (sum - rest_[i + 1] + term.stride - 1) / term.stride);
    for (int64_t n = std::min(term.most, sum / term.stride); n >= least; n--)
      if (reaches(sum - n * term.stride, i + 1)) return true;
    return false;
  }

 private:
  const Term* const terms_;
  int count_ = 0;
  int64_t rest_[2 * max_axes + 3] = {};  // what the terms from each one on add up to at most
  int steps_ = 100'000;
};

}  // namespace

bool share_memory(const TensorView& x, const TensorView& y) {
  if (!x.data || !y.data || !x.has_elements() || !y.has_elements()) return false;
  Term terms[2 * max_axes + 2];
  int count = 0;
  const Span a = span(x, terms, count), b = span(y, terms, count);
  if (!a.valid || !b.valid) return true;
  if (a.low >= b.high || b.low >= a.high) return false;
  // a.low + (a's sum) == b.low + (b's sum): with b's indices counted from the other end, all terms are added.
  return Search(terms, count).reaches(b.high - 1 - a.low);
}

}  // namespace gqa
