// coverage.h: coverage that does not depend on which thread came first.
#pragma once

#include <cstdint>
#include <vector>

namespace gqa {

// What runs while one exists leaves no trace in the coverage. For calls on several threads: their counts differ from
// run to run, and with them would what the fuzzer keeps and tries next, so that no run could be repeated.
class Uncounted {
 public:
  Uncounted();
  ~Uncounted();
  Uncounted(const Uncounted&) = delete;
  Uncounted& operator=(const Uncounted&) = delete;

 private:
  const std::vector<uint8_t> counts_;
};

}  // namespace gqa
