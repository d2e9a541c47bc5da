// Vectors of 16 floats: AVX-512 (F, BW, DQ, VL), 32 registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace pyconv::cpu::PYCONV_ISA {

using vec = __m512;
constexpr int lanes = 16;

// Largest register tiles, by number of vectors per row: 12 rows of two vectors keep 24
// accumulators and 2 weights in the 32 registers; the broadcasts are memory operands.
constexpr int tile_rows[3] = {0, 12, 12};

static inline vec zero() { return _mm512_setzero_ps(); }
static inline vec broadcast(float value) { return _mm512_set1_ps(value); }
static inline vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, vec v) { _mm512_storeu_ps(p, v); }
static inline vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec div(vec a, vec b) { return _mm512_div_ps(a, b); }
static inline vec fmadd(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec fnmadd(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b

static inline __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>((1u << static_cast<unsigned>(n)) - 1u);
}
// The first n lanes, 0 <= n <= lanes; memory behind them is not touched, lanes behind them are 0.
static inline vec load_n(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
static inline void store_n(float* p, vec v, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}

// max(v, least), where NaN stays NaN: of an unordered pair vmaxps returns its second operand. The
// masked form with every lane set is the same instruction; GCC 12 warns falsely about the plain
// one.
static inline vec at_least(vec least, vec v) { return _mm512_maskz_max_ps(0xffff, least, v); }
// v where y > 0, else 0.
static inline vec where_positive(vec y, vec v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GT_OQ), v);
}

// a where y > 0, else b.
static inline vec select_positive(vec y, vec a, vec b) {
  return _mm512_mask_mov_ps(b, _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GT_OQ), a);
}
// The nearest numbers of bfloat16; round_bfloat16.cpp explains how.
static inline vec nearest_bfloat16(vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd =
      _mm512_and_si512(_mm512_maskz_srli_epi32(0xffff, bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
  const vec rounded =
      _mm512_mask_mov_ps(_mm512_castsi512_ps(_mm512_add_epi32(bits, half)),
                         _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_castsi512_ps(quiet));
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(rounded), _mm512_set1_epi32(-0x10000)));
}

// Pairs of numbers of bfloat16, one a lane: the first in its upper half, the second in the lower
// one. vdpbf16ps adds the product of the upper halves, then that of the lower ones, each rounded
// like a multiply-add with denormals as zeros (Intel SDM vol. 2); by name, since as an intrinsic it
// takes a flag of the compiler that would allow it everywhere.
#ifdef PYCONV_EMULATED_VDPBF16PS
constexpr bool pairs_by_instruction = false;
static inline vec fmadd_pairs(vec a, vec b, vec c) { return PYCONV_EMULATED_VDPBF16PS(c, a, b); }
#else
constexpr bool pairs_by_instruction = true;
static inline vec fmadd_pairs(vec a, vec b, vec c) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}
#endif
static inline vec pair(vec first, vec second) {
  const __m512i upper = _mm512_and_si512(_mm512_castps_si512(first), _mm512_set1_epi32(-0x10000));
  const __m512i lower = _mm512_maskz_srli_epi32(0xffff, _mm512_castps_si512(second), 16);
  return _mm512_castsi512_ps(_mm512_or_si512(upper, lower));
}
// The lanes with even numbers of a, then those of b; the odd ones.
static inline vec even_lanes(vec a, vec b) {
  const __m512i index =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(a, index, b);
}
static inline vec odd_lanes(vec a, vec b) {
  const __m512i index =
      _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_permutex2var_ps(a, index, b);
}

// 2^n of whole numbers from -126 to 127. The sum with 1.5 * 2^23 has n + 127 in its low bits.
static inline vec power_of_2(vec n) {
  const vec biased = _mm512_add_ps(n, _mm512_set1_ps(12582912.0f + 127.0f));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_castps_si512(biased), 23));
}

// Halved by way of memory: GCC 12 warns falsely about _mm512_extractf64x4_pd.
static inline float sum_lanes(vec v) {
  float all[lanes];
  _mm512_storeu_ps(all, v);
  const __m256 eight = _mm256_add_ps(_mm256_loadu_ps(all), _mm256_loadu_ps(all + 8));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// In lane i the sum of the lanes of v[i]. First within blocks of four lanes, of which two vectors
// and then two pairs of them become one; then the blocks. Masked forms as in at_least.
static inline vec sum_each(const vec (&v)[lanes]) {
  const auto add_two = [](vec a, vec b) {
    return _mm512_add_ps(_mm512_maskz_unpacklo_ps(0xffff, a, b),
                         _mm512_maskz_unpackhi_ps(0xffff, a, b));
  };
  const auto add_four = [&](const vec* four) {
    const __m512d a = _mm512_castps_pd(add_two(four[0], four[1]));
    const __m512d b = _mm512_castps_pd(add_two(four[2], four[3]));
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, a, b)),
                         _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, a, b)));
  };
  // The even blocks of a, then those of b, and the odd ones.
  const auto add_blocks = [](vec a, vec b) {
    return _mm512_add_ps(_mm512_maskz_shuffle_f32x4(0xffff, a, b, 0x88),
                         _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0xdd));
  };
  return add_blocks(add_blocks(add_four(v), add_four(v + 4)),
                    add_blocks(add_four(v + 8), add_four(v + 12)));
}

// Where v is greater than best, or the first NaN, v takes its place and position that of `at`.
static inline void keep_maximum(vec v, vec position, vec& best, vec& at) {
  const __mmask16 wins = static_cast<__mmask16>(_mm512_cmp_ps_mask(v, best, _CMP_NLE_UQ) &
                                                _mm512_cmp_ps_mask(best, best, _CMP_ORD_Q));
  best = _mm512_mask_mov_ps(best, wins, v);
  at = _mm512_mask_mov_ps(at, wins, position);
}
// The first n lanes, whole numbers from 0 to 255, as bytes.
static inline void store_bytes_n(uint8_t* p, vec v, int64_t n) {
  const __m512i words = _mm512_maskz_cvttps_epi32(0xffff, v);
  const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, words);
  if (n == lanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    return;
  }
  uint8_t all[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(all), bytes);
  for (int64_t i = 0; i < n; ++i) p[i] = all[i];
}

// Pairs {table[which[i]], v[i]} of 8 bytes each. The table has 8 entries; a byte beyond them takes
// one of them, or 0.
static inline void store_pairs(void* to, const int32_t* table, const uint8_t* which, vec v) {
  const __m512i choices = _mm512_maskz_broadcast_i64x4(
      0x0f, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table)));
  const __m512i index =
      _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(which)));
  const __m512i numbers = _mm512_maskz_permutexvar_epi32(0xffff, index, choices);
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const __m512i floats = _mm512_castps_si512(v);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi32(numbers, low, floats));
  _mm512_storeu_si512(static_cast<char*>(to) + 64,
                      _mm512_permutex2var_epi32(numbers, high, floats));
}
static inline __mmask16 below(const uint8_t* which, uint8_t limit) {
  return _mm_cmplt_epu8_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(which)),
                             _mm_set1_epi8(static_cast<char>(limit)));
}
// v where which[i] < limit, else 0.
static inline vec where_below(const uint8_t* which, uint8_t limit, vec v) {
  return _mm512_maskz_mov_ps(below(which, limit), v);
}
// v where which[i] == value, else 0.
static inline vec where_equal(const uint8_t* which, uint8_t value, vec v) {
  const __mmask16 equal =
      _mm_cmpeq_epi8_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(which)),
                          _mm_set1_epi8(static_cast<char>(value)));
  return _mm512_maskz_mov_ps(equal, v);
}
// counts[i] += which[i] < limit
static inline void count_below(int32_t* counts, const uint8_t* which, uint8_t limit) {
  const __m512i old = _mm512_loadu_si512(counts);
  _mm512_storeu_si512(counts,
                      _mm512_mask_add_epi32(old, below(which, limit), old, _mm512_set1_epi32(1)));
}

// Bit i: whether p[i] is value, for i < n <= 64.
static inline uint64_t bytes_equal(const uint8_t* p, int64_t n, uint8_t value) {
  const __mmask64 some = ~uint64_t{0} >> (64 - n);
  return _mm512_mask_cmpeq_epi8_mask(some, _mm512_maskz_loadu_epi8(some, p),
                                     _mm512_set1_epi8(static_cast<char>(value)));
}

// Vectors of 64-bit integers. Masked forms where GCC 12 warns falsely about the plain ones.
using wide = __m512i;
constexpr int wide_lanes = 8;
static inline wide wide_broadcast(uint64_t value) {
  return _mm512_set1_epi64(static_cast<int64_t>(value));
}
static inline wide wide_load(const uint64_t* p) { return _mm512_loadu_si512(p); }
static inline void wide_store(uint64_t* p, wide v) { _mm512_storeu_si512(p, v); }
static inline wide wide_add(wide a, wide b) { return _mm512_add_epi64(a, b); }
static inline wide wide_xor(wide a, wide b) { return _mm512_xor_si512(a, b); }
// The product of the low halves.
static inline wide wide_multiply(wide a, wide b) { return _mm512_maskz_mul_epu32(0xff, a, b); }
static inline wide wide_high(wide v) { return _mm512_maskz_srli_epi64(0xff, v, 32); }
// The low half of one below the low half of the other.
static inline wide wide_join(wide low, wide high) {
  return _mm512_mask_blend_epi32(0xaaaa, low, _mm512_maskz_slli_epi64(0xff, high, 32));
}

}  // namespace pyconv::cpu::PYCONV_ISA
