#include "deal.h"

namespace gqa {
namespace {

int64_t bits_of(int64_t n) {
  int64_t bits = 0;
  for (; n > 0; n >>= 1) bits++;
  return bits;
}

}  // namespace

int64_t Deal::held(int64_t token) const {
  int64_t total = 0, first = 0;
  for (int64_t level = 0; first < token; level++) {
    const int64_t block = piece << level, turn = block * ranks_;
    const int64_t last = level == most_levels() ? token : std::min(token, 2 * rounds * turn);
    const int64_t turns = (last - first) / turn, rest = (last - first) % turn;
    total += turns * block + std::clamp<int64_t>(rest - rank_ * block, 0, block);
    first = last;
  }
  return total;
}

int64_t Deal::room(int64_t capacity) const {
  if (window_ == 0) return held(capacity);
  const int64_t block = piece << level_of(ceil_div(window_, piece));
  return ranks_ > 1 ? std::min(capacity, capacity / ranks_ + 2 * block) : capacity;
}

int64_t Deal::level_of(int64_t number) const {
  return std::min(std::max<int64_t>(bits_of(number / (rounds * ranks_)) - 1, 0), most_levels());
}

int64_t Deal::most_levels() const {
  if (window_ == 0) return 64;
  return std::max<int64_t>(bits_of(ceil_div(window_, piece) / (rounds * ranks_)) - 1, 0);
}

}  // namespace gqa
