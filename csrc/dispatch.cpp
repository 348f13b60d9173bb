#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace gqa {

// GQA_ISAS is a list of X(name), best first, from the build.
#define X(isa)                  \
  namespace isa {               \
  extern const Kernels kernels; \
  }
GQA_ISAS
#undef X

namespace {

const Kernels* const built[] = {
#define X(isa) &isa::kernels,
    GQA_ISAS
#undef X
};

bool supported(const std::string& name) {
#if defined(__x86_64__)
  if (name == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return __builtin_cpu_supports("sse4.2");
#else
  return name == "baseline";
#endif
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Kernels* best() {
  for (const Kernels* kernels : built)
    if (supported(kernels->name)) return kernels;
  throw std::invalid_argument("this CPU supports none of the instruction sets that gqa was built for");
}

std::atomic<const Kernels*> active{nullptr};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : built)
    if (supported(kernels->name)) names.push_back(kernels->name);
  return names;
}

const Kernels& active_kernels() {
  const Kernels* kernels = active.load(std::memory_order_acquire);
  if (!kernels) active.store(kernels = best(), std::memory_order_release);
  return *kernels;
}

void use_isa(const std::string& name) {
  for (const Kernels* kernels : built)
    if (name == kernels->name && supported(name)) return active.store(kernels, std::memory_order_release);
  throw std::invalid_argument("GQA_ISA is '" + name + "'; available on this machine: " + joined(available_isas()));
}

}  // namespace gqa
