#include "dispatch.h"

#include <atomic>
#include <stdexcept>
#include <vector>

#include "cpu.h"

namespace gqa {

// GQA_ISAS is a list of X(name, "features that its code may use"), best first, from the build (CMakeLists.txt).
#define X(isa, features)        \
  namespace isa {               \
  extern const Kernels kernels; \
  }
GQA_ISAS
#undef X

namespace {

struct Isa {
  Kernels kernels;
  const char* features;
};

// What an instruction set has of its own, and of the one that it adds to.
Kernels complete(const Kernels& own) {
  if (!own.base) return own;
  Kernels kernels = *own.base;
  kernels.name = own.name;
  kernels.integers = own.integers;
  return kernels;
}

const std::vector<Isa>& built() {
  static const std::vector<Isa> all = {
#define X(isa, features) {complete(isa::kernels), features},
      GQA_ISAS
#undef X
  };
  return all;
}

bool supported(const Isa& isa) {
  static const CpuReport cpu = report_of_this_cpu();
  return has_features(cpu, isa.features);
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Kernels* best() {
  for (const Isa& isa : built())
    if (supported(isa)) return &isa.kernels;
  throw std::invalid_argument("this CPU supports none of the instruction sets that gqa was built for");
}

std::atomic<const Kernels*> active{nullptr};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : built())
    if (supported(isa)) names.push_back(isa.kernels.name);
  return names;
}

const Kernels& active_kernels() {
  const Kernels* kernels = active.load(std::memory_order_acquire);
  if (!kernels) active.store(kernels = best(), std::memory_order_release);
  return *kernels;
}

void use_isa(const std::string& name) {
  for (const Isa& isa : built())
    if (name == isa.kernels.name && supported(isa)) return active.store(&isa.kernels, std::memory_order_release);
  throw std::invalid_argument("GQA_ISA is '" + name + "'; available on this machine: " + joined(available_isas()));
}

}  // namespace gqa
