// Vectors of 4 floats in plain C++, for any compiler and architecture. Fixed-length loops over a
// small struct, which compilers turn into SSE2 or NEON instructions where there are any.
#pragma once

#include <cstdint>

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

// Where v is greater than best, or the first NaN, v takes its place and position that of `at`.
static inline void keep_maximum(vec v, vec position, vec& best, vec& at) {
  for (int i = 0; i < lanes; ++i) {
    const bool wins = !(v[i] <= best[i]) & (best[i] == best[i]);
    best[i] = wins ? v[i] : best[i];
    at[i] = wins ? position[i] : at[i];
  }
}
// The first n lanes, whole numbers from 0 to 127, as bytes.
static inline void store_bytes_n(uint8_t* p, vec v, int64_t n) {
  for (int i = 0; i < lanes; ++i) {
    if (i < n) p[i] = static_cast<uint8_t>(v[i]);
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
