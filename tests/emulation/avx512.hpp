// AVX-512 intrinsics on a machine without them, so that tests can run that path anywhere: SIMDe's,
// and those that its release in Debian 12 lacks. Included before everything else in the AVX-512
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

// These are used with all lanes selected only.
static inline __m512i emulated_maskz_cvttps_epi32(__mmask16, __m512 v) {
  float lanes[16];
  simde_mm512_storeu_ps(lanes, v);
  int32_t words[16];
  for (int i = 0; i < 16; ++i) words[i] = static_cast<int32_t>(lanes[i]);
  return simde_mm512_loadu_si512(words);
}

static inline __m128i emulated_maskz_cvtepi32_epi8(__mmask16, __m512i v) {
  int32_t words[16];
  simde_mm512_storeu_si512(words, v);
  int8_t bytes[16];
  for (int i = 0; i < 16; ++i) bytes[i] = static_cast<int8_t>(words[i]);
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

static inline __m512i emulated_maskz_cvtepu8_epi32(__mmask16, __m128i v) {
  uint8_t bytes[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), v);
  int32_t words[16];
  for (int i = 0; i < 16; ++i) words[i] = bytes[i];
  return simde_mm512_loadu_si512(words);
}

static inline __mmask16 emulated_cmplt_epu8_mask(__m128i a, __m128i b) {
  uint8_t of_a[16], of_b[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(of_a), a);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(of_b), b);
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<unsigned>(of_a[i] < of_b[i]) << i;
  return static_cast<__mmask16>(mask);
}

static inline __mmask16 emulated_cmpeq_epi8_mask(__m128i a, __m128i b) {
  return static_cast<__mmask16>(_mm_movemask_epi8(_mm_cmpeq_epi8(a, b)));
}

static inline __m512i emulated_maskz_loadu_epi8(__mmask64 mask, const void* p) {
  uint8_t bytes[64] = {};
  for (int i = 0; i < 64; ++i) {
    if (mask >> i & 1) bytes[i] = static_cast<const uint8_t*>(p)[i];
  }
  return simde_mm512_loadu_si512(bytes);
}

static inline __m512i emulated_maskz_srli_epi64(__mmask8, __m512i v, unsigned count) {
  return simde_mm512_srli_epi64(v, count);
}

static inline __m512i emulated_maskz_slli_epi64(__mmask8, __m512i v, unsigned count) {
  return simde_mm512_slli_epi64(v, count);
}

static inline __m512i emulated_maskz_srli_epi32(__mmask16, __m512i v, unsigned count) {
  return simde_mm512_srli_epi32(v, count);
}

static inline __m512i emulated_maskz_slli_epi32(__mmask16, __m512i v, unsigned count) {
  return simde_mm512_slli_epi32(v, count);
}

static inline __m512 emulated_dpbf16_ps(__m512 sum, __m512 a, __m512 b) {
  const __m512i upper = simde_mm512_set1_epi32(-0x10000);
  const auto first = [=](__m512 v) {
    return simde_mm512_castsi512_ps(simde_mm512_and_si512(simde_mm512_castps_si512(v), upper));
  };
  const auto second = [](__m512 v) {
    return simde_mm512_castsi512_ps(simde_mm512_slli_epi32(simde_mm512_castps_si512(v), 16));
  };
  sum = simde_mm512_fmadd_ps(first(a), first(b), sum);
  return simde_mm512_fmadd_ps(second(a), second(b), sum);
}

}  // namespace pyconv::cpu::PYCONV_ISA

#define PYCONV_EMULATED_VDPBF16PS emulated_dpbf16_ps
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm512_maskz_cvttps_epi32 emulated_maskz_cvttps_epi32
#define _mm512_maskz_cvtepi32_epi8 emulated_maskz_cvtepi32_epi8
#define _mm512_maskz_cvtepu8_epi32 emulated_maskz_cvtepu8_epi32
#define _mm_cmplt_epu8_mask emulated_cmplt_epu8_mask
#define _mm_cmpeq_epi8_mask emulated_cmpeq_epi8_mask
#define _mm512_maskz_loadu_epi8 emulated_maskz_loadu_epi8
#define _mm512_maskz_srli_epi64 emulated_maskz_srli_epi64
#define _mm512_maskz_slli_epi64 emulated_maskz_slli_epi64
#define _mm512_maskz_shuffle_f32x4 simde_mm512_maskz_shuffle_f32x4
#define _mm512_maskz_srli_epi32 emulated_maskz_srli_epi32
#define _mm512_maskz_slli_epi32 emulated_maskz_slli_epi32
