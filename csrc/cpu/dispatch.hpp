// Which instruction set runs: chosen at the first use from what the processor and the operating
// system support, or by PYCONV_FORCE_ISA, or by select().
#pragma once

#include <string>
#include <vector>

#include "../ops.hpp"

namespace pyconv::cpu {

namespace avx512 {
extern const Operations operations;
}
namespace avx2 {
extern const Operations operations;
}
namespace portable {
extern const Operations operations;
}

// The paths that this build has and this machine can run, fastest first. Never empty.
std::vector<std::string> available();

// The table in use. Throws std::invalid_argument if PYCONV_FORCE_ISA names an unknown or
// unavailable path.
const Operations& operations();

// Switches every later call to the named path. Throws std::invalid_argument as above.
void select(const std::string& isa);

}  // namespace pyconv::cpu
