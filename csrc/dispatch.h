// dispatch.h: which instruction sets were built in, which of them this CPU has, and which one is in use.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernel.h"

namespace gqa {

// Names of the usable instruction sets, best first.
std::vector<std::string> available_isas();

// The kernels in use: the best available ones, or those that `use_isa` chose.
const Kernels& active_kernels();

// Throws std::invalid_argument for a name that is unknown, was not built, or is not supported by this CPU.
void use_isa(const std::string& name);

}  // namespace gqa
