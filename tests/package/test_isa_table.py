"""The table of instruction sets: one is chosen, and listed, only where the machine has every feature that it names."""

import platform
from pathlib import Path

import pytest

from program import output_of_program

# What the processor says, and /proc/cpuinfo where it has another name.
FEATURES = {
    "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "popcnt": "popcnt", "cx16": "cx16",
    "sahf": "lahf_lm", "fma": "fma", "f16c": "f16c", "avx2": "avx2", "avx512f": "avx512f", "avx512bw": "avx512bw",
    "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512vbmi": "avx512vbmi", "avx512vnni": "avx512_vnni",
}  # fmt: skip


def dispatched(folder, *table):
    """The instruction set in use, then all that can be used, of a table of (name, features)."""
    stubs = "".join(
        f'namespace gqa::{name} {{ extern const Kernels kernels; const Kernels kernels = stub("{name}"); }}\n'
        for name, _ in table
    )
    code = f"""
#include <cstdio>
#include <stdexcept>
#include "dispatch.h"
static gqa::Kernels stub(const char* name) {{
  gqa::Kernels kernels{{}};
  kernels.name = name;
  return kernels;
}}
{stubs}
int main() {{
  try {{
    std::printf("%s", gqa::active_kernels().name);
  }} catch (const std::invalid_argument& error) {{
    std::printf("%s", error.what());
  }}
  for (const std::string& name : gqa::available_isas()) std::printf("\\n%s", name.c_str());
  for (const char* name : {{{", ".join(f'"{name}"' for name, _ in table)}}}) {{
    try {{
      gqa::use_isa(name);
      std::printf("\\ncan use %s", gqa::active_kernels().name);
    }} catch (const std::invalid_argument&) {{
    }}
  }}
}}
"""
    isas = "-DGQA_ISAS=" + " ".join(f'X({name}, "{features}")' for name, features in table)
    return output_of_program(folder, code, "dispatch.cpp", "cpu.cpp", options=[isas]).split("\n")


def test_an_instruction_set_of_unknown_features_is_not_chosen(tmp_path):
    unknown = ["telepathy", "portable telepathy", "telepathy portable", "", " ", "Portable", "port"]
    table = [(f"fake{i}", features) for i, features in enumerate(unknown)]
    assert dispatched(tmp_path, *table, ("real", "portable")) == ["real", "real", "can use real"]


def test_the_first_that_is_supported_is_chosen(tmp_path):
    table = [("first", "portable"), ("fake", "telepathy"), ("second", "portable")]
    assert dispatched(tmp_path, *table) == ["first", "first", "second", "can use first", "can use second"]


def test_where_none_is_supported_there_is_an_error(tmp_path):
    assert dispatched(tmp_path, ("fake", "telepathy")) == [
        "this CPU supports none of the instruction sets that gqa was built for"
    ]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="asks an x86 processor")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="asks the Linux kernel")
def test_features_are_those_that_the_operating_system_names(tmp_path):
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    code = """
#include <cstdio>
#include "cpu.h"
int main(int count, char** names) {
  const gqa::CpuReport cpu = gqa::report_of_this_cpu();
  for (int i = 1; i < count; i++)
    if (gqa::has_features(cpu, names[i])) std::printf("%s ", names[i]);
}
"""
    found = output_of_program(tmp_path, code, "cpu.cpp", arguments=FEATURES).split()
    assert found == [feature for feature, flag in FEATURES.items() if flag in flags]


def test_every_feature_is_required_and_so_is_what_saves_its_registers(tmp_path):
    code = """
#include "cpu.h"
using gqa::has_features;
int main() {
  const uint64_t sse = 0x3, avx = 0x7, avx512 = 0xe7;
  const gqa::CpuReport all = {~0u, ~0u, ~0u, ~0u, avx512}, none = {};
  auto with = [](uint32_t leaf1, uint32_t leaf7, uint64_t saved) {
    return gqa::CpuReport{leaf1, leaf7, 0, 0, saved};
  };
  const uint32_t fma = 1u << 12, f16c = 1u << 29, avx2 = 1u << 5, foundation = 1u << 16;
  return !(has_features(all, "avx512f avx512bw avx512dq avx512vl avx2 fma f16c") && has_features(all, " avx2  fma ") &&
           !has_features(none, "sse4.2") && has_features(none, "portable") &&
           has_features(with(fma | f16c, avx2, avx), "avx2 fma f16c") &&
           !has_features(with(fma, avx2, avx), "avx2 fma f16c") &&
           !has_features(with(f16c, avx2, avx), "avx2 fma f16c") &&
           !has_features(with(fma | f16c, 0, avx), "avx2 fma f16c") &&
           !has_features(with(fma | f16c, avx2, sse), "avx2 fma f16c") &&
           !has_features(with(fma | f16c, avx2, sse), "f16c") && has_features(with(1u << 20, 0, 0), "sse4.2") &&
           has_features(with(0, foundation, avx512), "avx512f") && !has_features(with(0, foundation, avx), "avx512f"));
}
"""
    output_of_program(tmp_path, code, "cpu.cpp")
