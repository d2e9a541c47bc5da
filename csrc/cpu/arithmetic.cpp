#include "arithmetic.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace pyconv::cpu {

#if defined(__x86_64__)

// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, section 10.2.3:
// exceptions masked, round to nearest, flush to zero, denormals are zeros.
constexpr uint64_t for_kernels = 0x1f80 | 0x8000 | 0x0040;
uint64_t arithmetic() { return _mm_getcsr(); }
void set_arithmetic(uint64_t state) { _mm_setcsr(static_cast<unsigned>(state)); }

#elif defined(__aarch64__)

// Arm Architecture Reference Manual, FPCR: flush to zero, the rest 0.
constexpr uint64_t for_kernels = uint64_t{1} << 24;
uint64_t arithmetic() {
  uint64_t state;
  __asm__ volatile("mrs %0, fpcr" : "=r"(state));
  return state;
}
void set_arithmetic(uint64_t state) { __asm__ volatile("msr fpcr, %0" : : "r"(state)); }

#else

constexpr uint64_t for_kernels = 0;
uint64_t arithmetic() { return 0; }
void set_arithmetic(uint64_t) {}

#endif

uint64_t set_arithmetic_for_kernels() {
  const uint64_t before = arithmetic();
  set_arithmetic(for_kernels);
  return before;
}

}  // namespace pyconv::cpu
