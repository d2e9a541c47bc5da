// Vectors of 8 floats: AVX2 + FMA, 16 registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace pyconv::cpu::PYCONV_ISA {

using vec = __m256;
constexpr int lanes = 8;

// Largest register tiles, by number of vectors per row: tile_rows[2] rows of two vectors keep 12
// accumulators, 2 weights and 1 broadcast in the 16 registers.
constexpr int tile_rows[3] = {0, 10, 6};

static inline vec zero() { return _mm256_setzero_ps(); }
static inline vec broadcast(float value) { return _mm256_set1_ps(value); }
static inline vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, vec v) { _mm256_storeu_ps(p, v); }
static inline vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec div(vec a, vec b) { return _mm256_div_ps(a, b); }
static inline vec fmadd(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec fnmadd(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b

static inline __m256i first_lanes(int64_t n) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), index);
}
// The first n lanes, 0 <= n <= lanes; memory behind them is not touched, lanes behind them are 0.
static inline vec load_n(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
// In parts of 4, 2 and 1, as a masked store takes a dozen cycles on AMD's processors.
static inline void store_n(float* p, vec v, int64_t n) {
  if (n == lanes) {
    _mm256_storeu_ps(p, v);
    return;
  }
  __m128 part = _mm256_castps256_ps128(v);
  if ((n & 4) != 0) {
    _mm_storeu_ps(p, part);
    p += 4;
    part = _mm256_extractf128_ps(v, 1);
  }
  if ((n & 2) != 0) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    p += 2;
    part = _mm_movehl_ps(part, part);
  }
  if ((n & 1) != 0) _mm_store_ss(p, part);
}

// max(v, least), where NaN stays NaN: of an unordered pair maxps returns its second operand.
static inline vec at_least(vec least, vec v) { return _mm256_max_ps(least, v); }
// v where y > 0, else 0.
static inline vec where_positive(vec y, vec v) {
  return _mm256_and_ps(_mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_GT_OQ), v);
}

// a where y > 0, else b.
static inline vec select_positive(vec y, vec a, vec b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_GT_OQ));
}
// The nearest numbers of bfloat16; round_bfloat16.cpp explains how.
static inline vec nearest_bfloat16(vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const vec rounded =
      _mm256_blendv_ps(_mm256_castsi256_ps(_mm256_add_epi32(bits, half)),
                       _mm256_castsi256_ps(quiet), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_and_ps(rounded, _mm256_castsi256_ps(_mm256_set1_epi32(-0x10000)));
}

// Pairs of numbers of bfloat16, one a lane: the first in its upper half, the second in the lower
// one. What AVX512-BF16 does in one instruction: for tests, as it takes longer than multiplying
// single numbers.
constexpr bool pairs_by_instruction = false;
static inline vec first_of_pairs(vec v) {
  return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(-0x10000)));
}
static inline vec second_of_pairs(vec v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 16));
}
static inline vec fmadd_pairs(vec a, vec b, vec c) {
  c = _mm256_fmadd_ps(first_of_pairs(a), first_of_pairs(b), c);
  return _mm256_fmadd_ps(second_of_pairs(a), second_of_pairs(b), c);
}
static inline vec pair(vec first, vec second) {
  const __m256i lower = _mm256_srli_epi32(_mm256_castps_si256(second), 16);
  return _mm256_or_ps(first_of_pairs(first), _mm256_castsi256_ps(lower));
}
// The lanes with even numbers of a, then those of b; the odd ones.
static inline vec in_order(vec a_b_a_b) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a_b_a_b), 0xd8));
}
static inline vec even_lanes(vec a, vec b) { return in_order(_mm256_shuffle_ps(a, b, 0x88)); }
static inline vec odd_lanes(vec a, vec b) { return in_order(_mm256_shuffle_ps(a, b, 0xdd)); }

// 2^n of whole numbers from -126 to 127. The sum with 1.5 * 2^23 has n + 127 in its low bits.
static inline vec power_of_2(vec n) {
  const vec biased = _mm256_add_ps(n, _mm256_set1_ps(12582912.0f + 127.0f));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(biased), 23));
}

static inline float sum_lanes(vec v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// In lane i the sum of the lanes of v[i]. First within blocks of four lanes, of which two vectors
// and then two pairs of them become one.
static inline vec sum_each(const vec (&v)[lanes]) {
  const auto add_two = [](vec a, vec b) {
    return _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  };
  const auto add_four = [&](const vec* four) {
    const __m256d a = _mm256_castps_pd(add_two(four[0], four[1]));
    const __m256d b = _mm256_castps_pd(add_two(four[2], four[3]));
    return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                         _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  };
  const vec low = add_four(v), high = add_four(v + 4);
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                       _mm256_permute2f128_ps(low, high, 0x31));
}

// Where v is greater than best, or the first NaN, v takes its place and position that of `at`.
static inline void keep_maximum(vec v, vec position, vec& best, vec& at) {
  const vec wins =
      _mm256_and_ps(_mm256_cmp_ps(v, best, _CMP_NLE_UQ), _mm256_cmp_ps(best, best, _CMP_ORD_Q));
  best = _mm256_blendv_ps(best, v, wins);
  at = _mm256_blendv_ps(at, position, wins);
}
// The first n lanes, whole numbers from 0 to 255, as bytes.
static inline void store_bytes_n(uint8_t* p, vec v, int64_t n) {
  const __m256i words = _mm256_cvttps_epi32(v);
  const __m128i halves =
      _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i bytes = _mm_packus_epi16(halves, halves);
  if (n == lanes) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
    return;
  }
  uint8_t all[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(all), bytes);
  for (int64_t i = 0; i < n; ++i) p[i] = all[i];
}

static inline __m256i load_bytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
// Pairs {table[which[i]], v[i]} of 8 bytes each. The table has 8 entries; a byte beyond them takes
// one of them, or 0.
static inline void store_pairs(void* to, const int32_t* table, const uint8_t* which, vec v) {
  const __m256i choices = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
  const __m256i numbers = _mm256_permutevar8x32_epi32(choices, load_bytes(which));
  const __m256i floats = _mm256_castps_si256(v);
  const __m256i low = _mm256_unpacklo_epi32(numbers, floats);  // pairs 0, 1, 4, 5
  const __m256i high = _mm256_unpackhi_epi32(numbers, floats);
  __m256i* const pairs = static_cast<__m256i*>(to);
  _mm256_storeu_si256(pairs, _mm256_permute2x128_si256(low, high, 0x20));
  _mm256_storeu_si256(pairs + 1, _mm256_permute2x128_si256(low, high, 0x31));
}
static inline __m256i below(const uint8_t* which, uint8_t limit) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), load_bytes(which));
}
// v where which[i] < limit, else 0.
static inline vec where_below(const uint8_t* which, uint8_t limit, vec v) {
  return _mm256_and_ps(_mm256_castsi256_ps(below(which, limit)), v);
}
// v where which[i] == value, else 0.
static inline vec where_equal(const uint8_t* which, uint8_t value, vec v) {
  const __m256i equal = _mm256_cmpeq_epi32(_mm256_set1_epi32(value), load_bytes(which));
  return _mm256_and_ps(_mm256_castsi256_ps(equal), v);
}
// counts[i] += which[i] < limit
static inline void count_below(int32_t* counts, const uint8_t* which, uint8_t limit) {
  __m256i* const at = reinterpret_cast<__m256i*>(counts);
  _mm256_storeu_si256(at, _mm256_sub_epi32(_mm256_loadu_si256(at), below(which, limit)));
}

// Vectors of 64-bit integers.
using wide = __m256i;
constexpr int wide_lanes = 4;
static inline wide wide_broadcast(uint64_t value) {
  return _mm256_set1_epi64x(static_cast<int64_t>(value));
}
static inline wide wide_load(const uint64_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
static inline void wide_store(uint64_t* p, wide v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
static inline wide wide_add(wide a, wide b) { return _mm256_add_epi64(a, b); }
static inline wide wide_xor(wide a, wide b) { return _mm256_xor_si256(a, b); }
// The product of the low halves.
static inline wide wide_multiply(wide a, wide b) { return _mm256_mul_epu32(a, b); }
static inline wide wide_high(wide v) { return _mm256_srli_epi64(v, 32); }
// The low half of one below the low half of the other.
static inline wide wide_join(wide low, wide high) {
  return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xaa);
}

}  // namespace pyconv::cpu::PYCONV_ISA
