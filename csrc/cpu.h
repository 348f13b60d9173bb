// cpu.h: which instructions the CPU has, of those that the operating system lets a program use.
#pragma once

#include <stdint.h>

#include <string_view>

namespace gqa {

// What CPUID and XGETBV say; all 0 on other processors than x86.
struct CpuReport {
  uint32_t leaf1_ecx, leaf7_ebx, leaf7_ecx, extended1_ecx;
  uint64_t saved_registers;  // XCR0: what the operating system saves when it switches between threads
};

CpuReport report_of_this_cpu();

// Whether all of these features, separated by spaces, can be used. Their names are those of the compiler's -m options,
// and `portable`, which is everywhere. False for a list with a name that is not known here, and for an empty one.
bool has_features(const CpuReport& cpu, std::string_view features);

}  // namespace gqa
