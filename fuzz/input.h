// input.h: the bytes that a fuzzer makes up, read as numbers. Past their end every number is 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>

namespace gqa {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : next_(data), end_(data + size) {}

  uint8_t byte() { return next_ < end_ ? *next_++ : uint8_t(0); }
  bool flag() { return byte() & 1; }
  bool rarely() { return byte() >= 0xf0; }
  int64_t below(int64_t n) { return byte() % n; }  // n at most 256

  int64_t word() {
    uint64_t x = 0;
    for (int i = 0; i < 8; i++) x = x << 8 | byte();
    int64_t y;
    std::memcpy(&y, &x, sizeof y);
    return y;
  }

  // Small sizes mostly; some that fill tiles, blocks and splits; and some that no memory holds.
  int64_t size() {
    constexpr int64_t seams[] = {15, 16, 17, 24, 32, 33, 64, 96, 97, 128, 767, 768, 769, 1537};
    constexpr int64_t hostile[] = {1 << 16,          (1 << 16) + 1,    int64_t(1) << 31,
                                   int64_t(1) << 60, int64_t(1) << 62, INT64_MAX};
    const int64_t kind = byte();
    if (kind < 0xd0) return kind % 10;
    if (kind < 0xf8) return seams[size_t(kind) % std::size(seams)];
    return hostile[size_t(byte()) % std::size(hostile)];
  }

  // A position, a length or a bound: near `around`, or anywhere.
  int64_t number(int64_t around) {
    const int64_t kind = byte();
    if (kind >= 0xf8) return word();
    if (kind < 0x80) return around;
    return int64_t(uint64_t(around) + uint64_t(kind - 0xbc));
  }

 private:
  const uint8_t *next_, *const end_;
};

}  // namespace gqa
