#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gqa {
namespace {

// Bits of XCR0: xmm and ymm registers; and the mask registers, the upper halves of zmm 0-15, and zmm 16-31.
constexpr uint64_t xmm = 0, ymm = 0x6, zmm = ymm | 0xe0;

struct Feature {
  std::string_view name;
  uint32_t CpuReport::*word;
  int bit;
  uint64_t registers;
};
constexpr Feature table[] = {
    {"sse3", &CpuReport::leaf1_ecx, 0, xmm},       {"ssse3", &CpuReport::leaf1_ecx, 9, xmm},
    {"fma", &CpuReport::leaf1_ecx, 12, ymm},       {"cx16", &CpuReport::leaf1_ecx, 13, xmm},
    {"sse4.1", &CpuReport::leaf1_ecx, 19, xmm},    {"sse4.2", &CpuReport::leaf1_ecx, 20, xmm},
    {"popcnt", &CpuReport::leaf1_ecx, 23, xmm},    {"f16c", &CpuReport::leaf1_ecx, 29, ymm},
    {"sahf", &CpuReport::extended1_ecx, 0, xmm},   {"avx2", &CpuReport::leaf7_ebx, 5, ymm},
    {"avx512f", &CpuReport::leaf7_ebx, 16, zmm},   {"avx512dq", &CpuReport::leaf7_ebx, 17, zmm},
    {"avx512bw", &CpuReport::leaf7_ebx, 30, zmm},  {"avx512vl", &CpuReport::leaf7_ebx, 31, zmm},
    {"avx512vbmi", &CpuReport::leaf7_ecx, 1, zmm}, {"avx512vnni", &CpuReport::leaf7_ecx, 11, zmm},
};

bool has_feature(const CpuReport& cpu, std::string_view name) {
  if (name == "portable") return true;
  for (const Feature& feature : table)
    if (feature.name == name)
      return (cpu.*feature.word >> feature.bit & 1) && (cpu.saved_registers & feature.registers) == feature.registers;
  return false;
}

}  // namespace

CpuReport report_of_this_cpu() {
  CpuReport cpu{};
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d)) cpu.leaf1_ecx = c;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) cpu.leaf7_ebx = b, cpu.leaf7_ecx = c;
  if (__get_cpuid(0x80000001, &a, &b, &c, &d)) cpu.extended1_ecx = c;
  if (cpu.leaf1_ecx & bit_OSXSAVE) {  // only then is there an XGETBV
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    cpu.saved_registers = uint64_t(high) << 32 | low;
  }
#endif
  return cpu;
}

bool has_features(const CpuReport& cpu, std::string_view features) {
  bool any = false;
  while (!features.empty()) {
    const size_t end = features.find(' ');
    const std::string_view name = features.substr(0, end);
    features.remove_prefix(end == features.npos ? features.size() : end + 1);
    if (name.empty()) continue;
    if (!has_feature(cpu, name)) return false;
    any = true;
  }
  return any;
}

}  // namespace gqa
