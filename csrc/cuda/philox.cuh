// Philox4x32-10, a counter-based random number generator: a function of counter and key, without
// state. Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
#pragma once

#include <cstdint>

namespace pyconv::cuda {

// Four random words for counter = (counter, offset) and key = seed, 64 bits each, low word first.
__device__ __forceinline__ uint4 philox4x32_10(uint64_t counter, uint64_t offset, uint64_t seed) {
  uint4 c = make_uint4(static_cast<unsigned>(counter), static_cast<unsigned>(counter >> 32),
                       static_cast<unsigned>(offset), static_cast<unsigned>(offset >> 32));
  unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    constexpr unsigned m0 = 0xD2511F53u, m1 = 0xCD9E8D57u;
    c = make_uint4(__umulhi(m1, c.z) ^ c.y ^ k0, m1 * c.z, __umulhi(m0, c.x) ^ c.w ^ k1, m0 * c.x);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

}  // namespace pyconv::cuda
