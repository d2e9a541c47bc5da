// Vectors of 4 floats in plain C++, for any compiler and architecture. Fixed-length loops over a
// small struct, which compilers turn into SSE2 or NEON instructions where there are any.
#pragma once

#include <cstdint>
#include <cstring>

namespace pyconv::cpu::PYCONV_ISA {

constexpr int lanes = 4;

#if defined(__GNUC__)
// The same struct as GCC and Clang spell it; they keep this form in registers more reliably.
typedef float vec __attribute__((vector_size(16)));
#else
struct vec {
  float lane[4];
  float& operator[](int i) { return lane[i]; }
  float operator[](int i) const { return lane[i]; }
};
#endif

// Largest register tiles, by number of vectors per row: a multiplication needs a register for its
// product, so 8 accumulators of the 16 registers that SSE2 has.
constexpr int tile_rows[3] = {0, 8, 4};

static inline vec broadcast(float value) {
  vec v;
  for (int i = 0; i < lanes; ++i) v[i] = value;
  return v;
}
static inline vec zero() { return broadcast(0.0f); }
static inline vec load(const float* p) {
  vec v;
  for (int i = 0; i < lanes; ++i) v[i] = p[i];
  return v;
}
static inline void store(float* p, vec v) {
  for (int i = 0; i < lanes; ++i) p[i] = v[i];
}
static inline vec add(vec a, vec b) {
  vec v;
  for (int i = 0; i < lanes; ++i) v[i] = a[i] + b[i];
  return v;
}
static inline vec sub(vec a, vec b) {
  vec v;
  for (int i = 0; i < lanes; ++i) v[i] = a[i] - b[i];
  return v;
}
static inline vec mul(vec a, vec b) {
  vec v;
  for (int i = 0; i < lanes; ++i) v[i] = a[i] * b[i];
  return v;
}
// These round twice, as there may be no fused multiply-add.
static inline vec div(vec a, vec b) {
  for (int i = 0; i < lanes; ++i) a[i] /= b[i];
  return a;
}
static inline vec fmadd(vec a, vec b, vec c) {
  vec v;
  for (int i = 0; i < lanes; ++i) v[i] = a[i] * b[i] + c[i];
  return v;
}
static inline vec fnmadd(vec a, vec b, vec c) {  // c - a * b
  vec v;
  for (int i = 0; i < lanes; ++i) v[i] = c[i] - a[i] * b[i];
  return v;
}

// The first n lanes, 0 <= n <= lanes; memory behind them is not touched, lanes behind them are 0.
static inline vec load_n(const float* p, int64_t n) {
  vec v;
  for (int i = 0; i < lanes; ++i) v[i] = i < n ? p[i] : 0.0f;
  return v;
}
static inline void store_n(float* p, vec v, int64_t n) {
  for (int i = 0; i < lanes; ++i) {
    if (i < n) p[i] = v[i];
  }
}

// max(v, least), where NaN stays NaN.
static inline vec at_least(vec least, vec v) {
  for (int i = 0; i < lanes; ++i) v[i] = v[i] < least[i] ? least[i] : v[i];
  return v;
}
// v where y > 0, else 0.
static inline vec where_positive(vec y, vec v) {
  for (int i = 0; i < lanes; ++i) v[i] = y[i] > 0.0f ? v[i] : 0.0f;
  return v;
}

// a where y > 0, else b.
static inline vec select_positive(vec y, vec a, vec b) {
  for (int i = 0; i < lanes; ++i) b[i] = y[i] > 0.0f ? a[i] : b[i];
  return b;
}
// The nearest numbers of bfloat16; round_bfloat16.cpp explains how.
static inline vec nearest_bfloat16(vec v) {
  uint32_t bits[lanes];
  memcpy(bits, &v, sizeof bits);
  for (uint32_t& b : bits) {
    const bool is_nan = (b & 0x7fffffff) > 0x7f800000;
    b = (is_nan ? b | 0x00400000 : b + 0x7fff + (b >> 16 & 1)) & 0xffff0000;
  }
  memcpy(&v, bits, sizeof bits);
  return v;
}

// Pairs of numbers of bfloat16, one a lane: the first in its upper half, the second in the lower
// one. What AVX512-BF16 does in one instruction: for tests, as it takes longer than multiplying
// single numbers.
constexpr bool pairs_by_instruction = false;
static inline vec first_of_pairs(vec v) {
  uint32_t bits[lanes];
  memcpy(bits, &v, sizeof bits);
  for (uint32_t& b : bits) b &= 0xffff0000;
  memcpy(&v, bits, sizeof bits);
  return v;
}
static inline vec second_of_pairs(vec v) {
  uint32_t bits[lanes];
  memcpy(bits, &v, sizeof bits);
  for (uint32_t& b : bits) b <<= 16;
  memcpy(&v, bits, sizeof bits);
  return v;
}
static inline vec fmadd_pairs(vec a, vec b, vec c) {
  c = fmadd(first_of_pairs(a), first_of_pairs(b), c);
  return fmadd(second_of_pairs(a), second_of_pairs(b), c);
}
static inline vec pair(vec first, vec second) {
  uint32_t upper[lanes], lower[lanes];
  memcpy(upper, &first, sizeof upper);
  memcpy(lower, &second, sizeof lower);
  for (int i = 0; i < lanes; ++i) upper[i] = (upper[i] & 0xffff0000) | lower[i] >> 16;
  memcpy(&first, upper, sizeof upper);
  return first;
}
// The lanes with even numbers of a, then those of b; the odd ones.
static inline vec even_lanes(vec a, vec b) {
  vec v;
  for (int i = 0; i < lanes / 2; ++i) v[i] = a[2 * i], v[lanes / 2 + i] = b[2 * i];
  return v;
}
static inline vec odd_lanes(vec a, vec b) {
  vec v;
  for (int i = 0; i < lanes / 2; ++i) v[i] = a[2 * i + 1], v[lanes / 2 + i] = b[2 * i + 1];
  return v;
}

// 2^n of whole numbers from -126 to 127. The sum with 1.5 * 2^23 has n + 127 in its low bits.
static inline vec power_of_2(vec n) {
  const vec biased = add(n, broadcast(12582912.0f + 127.0f));
  uint32_t bits[lanes];
  memcpy(bits, &biased, sizeof bits);
  for (int i = 0; i < lanes; ++i) bits[i] <<= 23;
  memcpy(&n, bits, sizeof bits);
  return n;
}

static inline float sum_lanes(vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
// In lane i the sum of the lanes of v[i].
static inline vec sum_each(const vec (&v)[lanes]) {
  return vec{sum_lanes(v[0]), sum_lanes(v[1]), sum_lanes(v[2]), sum_lanes(v[3])};
}

// Where v is greater than best, or the first NaN, v takes its place and position that of `at`.
static inline void keep_maximum(vec v, vec position, vec& best, vec& at) {
  for (int i = 0; i < lanes; ++i) {
    const bool wins = !(v[i] <= best[i]) & (best[i] == best[i]);
    best[i] = wins ? v[i] : best[i];
    at[i] = wins ? position[i] : at[i];
  }
}
// The first n lanes, whole numbers from 0 to 255, as bytes.
static inline void store_bytes_n(uint8_t* p, vec v, int64_t n) {
  for (int i = 0; i < lanes; ++i) {
    if (i < n) p[i] = static_cast<uint8_t>(v[i]);
  }
}

// Vectors of 64-bit integers.
constexpr int wide_lanes = 2;
struct wide {
  uint64_t lane[wide_lanes];
};
static inline wide wide_load(const uint64_t* p) { return {{p[0], p[1]}}; }
static inline void wide_store(uint64_t* p, wide v) { p[0] = v.lane[0], p[1] = v.lane[1]; }
static inline wide wide_broadcast(uint64_t value) { return {{value, value}}; }
static inline wide wide_add(wide a, wide b) {
  return {{a.lane[0] + b.lane[0], a.lane[1] + b.lane[1]}};
}
static inline wide wide_xor(wide a, wide b) {
  return {{a.lane[0] ^ b.lane[0], a.lane[1] ^ b.lane[1]}};
}
// The product of the low halves.
static inline uint64_t low_half(uint64_t v) { return v & 0xffffffffu; }
static inline wide wide_multiply(wide a, wide b) {
  return {{low_half(a.lane[0]) * low_half(b.lane[0]), low_half(a.lane[1]) * low_half(b.lane[1])}};
}
static inline wide wide_high(wide v) { return {{v.lane[0] >> 32, v.lane[1] >> 32}}; }
// The low half of one below the low half of the other.
static inline wide wide_join(wide a, wide b) {
  return {{low_half(a.lane[0]) | b.lane[0] << 32, low_half(a.lane[1]) | b.lane[1] << 32}};
}

// Pairs {table[which[i]], v[i]} of 8 bytes each. The table has 8 entries; a byte beyond them takes
// one of them, or 0.
static inline void store_pairs(void* to, const int32_t* table, const uint8_t* which, vec v) {
  struct Pair {
    int32_t number;
    float value;
  };
  for (int i = 0; i < lanes; ++i) static_cast<Pair*>(to)[i] = {table[which[i] & 7], v[i]};
}
// v where which[i] < limit, else 0.
static inline vec where_below(const uint8_t* which, uint8_t limit, vec v) {
  for (int i = 0; i < lanes; ++i) v[i] = which[i] < limit ? v[i] : 0.0f;
  return v;
}
// v where which[i] == value, else 0.
static inline vec where_equal(const uint8_t* which, uint8_t value, vec v) {
  for (int i = 0; i < lanes; ++i) v[i] = which[i] == value ? v[i] : 0.0f;
  return v;
}
// counts[i] += which[i] < limit
static inline void count_below(int32_t* counts, const uint8_t* which, uint8_t limit) {
  for (int i = 0; i < lanes; ++i) counts[i] += which[i] < limit ? 1 : 0;
}

}  // namespace pyconv::cpu::PYCONV_ISA
