// AVX-512 intrinsics on a machine without them, so that tests can run that path anywhere: SIMDe's,
// and two that its release in Debian 12 lacks. Included before everything else in the AVX-512
// objects of a build with PYCONV_EMULATE_AVX512=ON; never in a wheel.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

namespace pyconv::cpu::PYCONV_ISA {

static inline __m512 emulated_maskz_loadu_ps(__mmask16 mask, const float* p) {
  float lanes[16] = {};
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) lanes[i] = p[i];
  }
  return simde_mm512_loadu_ps(lanes);
}

static inline void emulated_mask_storeu_ps(float* p, __mmask16 mask, __m512 v) {
  float lanes[16];
  simde_mm512_storeu_ps(lanes, v);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) p[i] = lanes[i];
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA

#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
