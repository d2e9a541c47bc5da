// Fixed-width names, the two 16-bit float formats and bit reinterpretation.
#pragma once
#include <cstdint>
#include <cstring>

#define PTXCPU_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define PTXCPU_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#define PTXCPU_INLINE inline __attribute__((always_inline))
#define PTXCPU_COLD __attribute__((noinline, cold))
#define PTXCPU_EXPORT __attribute__((visibility("default")))

namespace ptxcpu {

using u8 = uint8_t;
using i8 = int8_t;
using u16 = uint16_t;
using i16 = int16_t;
using u32 = uint32_t;
using i32 = int32_t;
using u64 = uint64_t;
using i64 = int64_t;
using u128 = unsigned __int128;
using i128 = __int128;
using f16 = _Float16;

/// Reinterprets the low bits of `source`; a wider destination is zero-extended.
template <class Destination, class Source>
PTXCPU_INLINE Destination bits_as(Source source) {
  constexpr size_t bytes =
      sizeof(Destination) < sizeof(Source) ? sizeof(Destination) : sizeof(Source);
  Destination result{};
  memcpy(&result, &source, bytes);
  return result;
}

/// bfloat16 with round-to-nearest-even conversion, as cvt.rn.bf16.f32.
struct bf16 {
  u16 bits;

  bf16() = default;
  bf16(float value) {
    u32 word = bits_as<u32>(value);
    const bool is_nan = (word & 0x7fffffffu) > 0x7f800000u;
    word += 0x7fffu + ((word >> 16) & 1u);
    bits = is_nan ? u16(0x7fff) : u16(word >> 16);
  }
  operator float() const { return bits_as<float>(u32(bits) << 16); }
};

template <class T>
PTXCPU_INLINE T load(const u8* address) {
  T value;
  memcpy(&value, address, sizeof value);
  return value;
}

template <class T>
PTXCPU_INLINE void store(u8* address, T value) {
  memcpy(address, &value, sizeof value);
}

}  // namespace ptxcpu
