// PTX arithmetic that differs from C++: rounding modes, saturation, bit fields, division by zero.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "types.hpp"

namespace ptxcpu {

// ---- Floating point ----

PTXCPU_INLINE float flush_denormal(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.f, x) : x;
}

/// The .sat modifier: clamps to [0, 1]; NaN becomes 0.
template <class T>
PTXCPU_INLINE T saturate(T x) {
  if (!(x > 0)) return 0;
  return x < 1 ? x : static_cast<T>(1);
}

/// min.f32: a NaN operand loses against a number, and -0 is less than +0.
template <class T>
PTXCPU_INLINE T float_min(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == 0 && b == 0) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}

template <class T>
PTXCPU_INLINE T float_max(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == 0 && b == 0) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}

/// The rounding-control field of MXCSR uses the same codes.
enum Rounding { kNearestEven = 0, kDown = 1, kUp = 2, kTowardZero = 3 };

/// The MXCSR register before and during a directed-rounding instruction.
struct RoundingControl {
  u32 saved;
  u32 changed;

  explicit RoundingControl(int rounding) {
    asm volatile("stmxcsr %0" : "=m"(saved));
    changed = (saved & ~0x6000u) | static_cast<u32>(rounding) << 13;
  }
};

// One assembly statement per operation: the compiler must not
// move arithmetic across the mode switch.
#define PTXCPU_ROUNDED_OPERATION(name, instruction)                             \
  __attribute__((noinline)) inline float name(float a, float b, int rounding) { \
    RoundingControl control(rounding);                                          \
    asm volatile("ldmxcsr %2\n\t" instruction " %1, %0\n\tldmxcsr %3"           \
                 : "+x"(a)                                                      \
                 : "x"(b), "m"(control.changed), "m"(control.saved));           \
    return a;                                                                   \
  }
PTXCPU_ROUNDED_OPERATION(rounded_add, "addss")
PTXCPU_ROUNDED_OPERATION(rounded_sub, "subss")
PTXCPU_ROUNDED_OPERATION(rounded_mul, "mulss")
PTXCPU_ROUNDED_OPERATION(rounded_div, "divss")
PTXCPU_ROUNDED_OPERATION(rounded_sqrt, "sqrtss")
#undef PTXCPU_ROUNDED_OPERATION

__attribute__((noinline)) inline float rounded_fma(float a, float b, float c, int rounding) {
  RoundingControl control(rounding);
  asm volatile("ldmxcsr %3\n\tvfmadd231ss %2, %1, %0\n\tldmxcsr %4"
               : "+x"(c)
               : "x"(a), "x"(b), "m"(control.changed), "m"(control.saved));
  return c;
}

/// cvt.r*i: rounds to an integer, mode in the order rni, rzi, rmi, rpi.
template <class T>
PTXCPU_INLINE T round_to_integer(T x, int mode) {
  switch (mode) {
    case 0:
      return std::nearbyint(x);
    case 1:
      return std::trunc(x);
    case 2:
      return std::floor(x);
    default:
      return std::ceil(x);
  }
}

/// Float to integer: out-of-range values clamp and NaN becomes 0.
template <class Integer, class Float>
PTXCPU_INLINE Integer float_to_integer(Float x) {
  using Wide = std::conditional_t<sizeof(Integer) == 8, long double, double>;
  constexpr Integer lowest = std::numeric_limits<Integer>::min();
  constexpr Integer highest = std::numeric_limits<Integer>::max();
  if (x != x) return 0;
  const Wide wide = x;
  if (wide <= static_cast<Wide>(lowest)) return lowest;
  if (wide >= static_cast<Wide>(highest)) return highest;
  return static_cast<Integer>(wide);
}

/// Integer to f32 with a directed rounding mode.
inline float integer_to_float(i64 value, int rounding) {
  const double exact = static_cast<double>(value);
  const float nearest = static_cast<float>(exact);
  const double rounded = nearest;
  if (rounded == exact) return nearest;
  const bool away_from_zero = std::fabs(rounded) > std::fabs(exact);
  if (rounding == kTowardZero) return away_from_zero ? std::nextafter(nearest, 0.f) : nearest;
  if (rounding == kDown) return rounded > exact ? std::nextafter(nearest, -INFINITY) : nearest;
  return rounded < exact ? std::nextafter(nearest, INFINITY) : nearest;
}

/// cvt.rna.tf32 (ties away from zero) or cvt.rn.tf32 (ties to even).
PTXCPU_INLINE u32 float_to_tf32(float x, bool ties_away) {
  const u32 bits = bits_as<u32>(x);
  const bool is_finite = (bits & 0x7f800000u) != 0x7f800000u;
  if (!is_finite) return bits;
  const u32 increment = ties_away ? 0x1000u : 0xfffu + ((bits >> 13) & 1u);
  return (bits + increment) & 0xffffe000u;
}

// ---- Integers ----

template <class T>
PTXCPU_INLINE T negate_wrapping(T a) {
  return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
}

/// Division by zero is undefined in PTX; hardware returns all ones.
template <class T>
PTXCPU_INLINE T integer_div(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return negate_wrapping(a);
  return a / b;
}

template <class T>
PTXCPU_INLINE T integer_rem(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return a % b;
}

template <class T>
PTXCPU_INLINE T shift_left(T a, u32 count) {
  return count >= sizeof(T) * 8 ? 0 : static_cast<T>(a << count);
}

template <class T>
PTXCPU_INLINE T shift_right(T a, u32 count) {
  constexpr u32 width = sizeof(T) * 8;
  if (count < width) return a >> count;
  return std::is_signed_v<T> ? static_cast<T>(a >> (width - 1)) : static_cast<T>(0);
}

PTXCPU_INLINE u32 funnel_shift(u32 low, u32 high, u32 count, bool left, bool clamp) {
  count = clamp ? std::min(count, 32u) : count & 31u;
  const u64 value = static_cast<u64>(high) << 32 | low;
  if (left) return count == 32 ? low : static_cast<u32>((value << count) >> 32);
  return count == 32 ? high : static_cast<u32>(value >> count);
}

PTXCPU_INLINE u32 permute_bytes(u32 a, u32 b, u32 selector) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 select = selector >> (4 * i) & 15u;
    u32 byte = static_cast<u32>(bytes >> ((select & 7u) * 8)) & 255u;
    if (select & 8u) byte = (byte & 0x80u) ? 255u : 0u;  // replicate the sign
    result |= byte << (8 * i);
  }
  return result;
}

/// Any logic function of three operands; bit (a*4 + b*2 + c) of the table is its value.
PTXCPU_INLINE u32 logic3(u32 a, u32 b, u32 c, u32 table) {
  u32 result = 0;
  if (table & 0x01) result |= ~a & ~b & ~c;
  if (table & 0x02) result |= ~a & ~b & c;
  if (table & 0x04) result |= ~a & b & ~c;
  if (table & 0x08) result |= ~a & b & c;
  if (table & 0x10) result |= a & ~b & ~c;
  if (table & 0x20) result |= a & ~b & c;
  if (table & 0x40) result |= a & b & ~c;
  if (table & 0x80) result |= a & b & c;
  return result;
}

template <class T>
PTXCPU_INLINE T insert_bits(T source, T target, u32 position, u32 length) {
  constexpr u32 width = sizeof(T) * 8;
  position &= 255u;
  length &= 255u;
  for (u32 i = 0; i < length && position + i < width; ++i) {
    const T bit = static_cast<T>(1) << (position + i);
    target = (source >> i & 1) ? (target | bit) : (target & ~bit);
  }
  return target;
}

template <class T, class Unsigned>
PTXCPU_INLINE T extract_bits(T source, u32 position, u32 length) {
  constexpr u32 width = sizeof(T) * 8;
  const Unsigned bits = static_cast<Unsigned>(source);
  position &= 255u;
  length &= 255u;
  if (length == 0) return 0;
  const u32 sign_position = std::min(position + length - 1, width - 1);
  const bool fill = std::is_signed_v<T> && (bits >> sign_position & 1);
  Unsigned result = 0;
  for (u32 i = 0; i < width; ++i) {
    const bool inside = i < length && position + i < width;
    const bool bit = inside ? (bits >> (position + i) & 1) : fill;
    if (bit) result |= static_cast<Unsigned>(1) << i;
  }
  return static_cast<T>(result);
}

template <class T>
PTXCPU_INLINE T reverse_bits(T x) {
  constexpr int width = sizeof(T) * 8;
  T result = 0;
  for (int i = 0; i < width; ++i) result |= (x >> i & 1) << (width - 1 - i);
  return result;
}

/// Position of the most significant bit that differs from the sign; all ones if there is none.
PTXCPU_INLINE u32 find_leading_bit(u64 x, bool is_signed, int width) {
  if (is_signed && (x >> (width - 1) & 1)) x = ~x;
  if (width == 32) x &= 0xffffffffu;
  return x ? static_cast<u32>(63 - __builtin_clzll(x)) : 0xffffffffu;
}

}  // namespace ptxcpu
