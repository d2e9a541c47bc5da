// How the processor computes while kernels run. Compiled once, with baseline flags.
#pragma once

#include <cstdint>

namespace pyconv::cpu {

// The calling thread's rounding, traps and treatment of denormals. Parallel loops have those of the
// thread that begins them.
uint64_t arithmetic();
void set_arithmetic(uint64_t state);

// Rounds to nearest, traps nothing, and takes denormals, and results that would be some, for zeros
// of their sign: for each of them some processors need a hundred cycles and more. Returns what was
// before, for set_arithmetic, as what Python and other libraries compute is none of the kernels'.
uint64_t set_arithmetic_for_kernels();

}  // namespace pyconv::cpu
