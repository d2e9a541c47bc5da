// Random numbers by Philox4x32-10: a function of a key and a counter, in any order, on any thread.
// Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
#pragma once

#include "isa.hpp"

namespace pyconv::cpu::PYCONV_ISA {

// Counters run side by side: with fewer, GCC unrolls instead of vectorising.
constexpr int64_t philox_counters = 64;
constexpr int64_t philox_values = 4 * philox_counters;

// The random words of the counters first, first + 1, ...: four each, in the elements' order.
static inline void philox_block(uint64_t first, uint64_t offset, uint64_t seed,
                                uint32_t (&out)[philox_values]) {
  uint32_t c0[philox_counters], c1[philox_counters], c2[philox_counters], c3[philox_counters];
  for (int64_t i = 0; i < philox_counters; ++i) {
    const uint64_t counter = first + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(counter);
    c1[i] = static_cast<uint32_t>(counter >> 32);
    c2[i] = static_cast<uint32_t>(offset);
    c3[i] = static_cast<uint32_t>(offset >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < philox_counters; ++i) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c0[i];
      const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2[i];
      c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      c1[i] = static_cast<uint32_t>(p1);
      c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c3[i] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int64_t i = 0; i < philox_counters; ++i) {
    out[4 * i + 0] = c0[i];
    out[4 * i + 1] = c1[i];
    out[4 * i + 2] = c2[i];
    out[4 * i + 3] = c3[i];
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
