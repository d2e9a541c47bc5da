// Dropout. Forward and backward are the same function: y = keep ? x * scale : 0, overwrites y (may
// be x).
//
// The random numbers are counter-based (Dropout in ops.hpp says which element takes which). They do
// not depend on threads, and the backward pass draws them again instead of storing a mask. Source:
// J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

constexpr int64_t block_counters =
    64;  // run side by side; fewer, and GCC unrolls instead of vectorising
constexpr int64_t block_values = 4 * block_counters;
constexpr int64_t piece = 64 * block_values;

// The random words of the counters first, first + 1, ...: four each, in the elements' order.
void philox_block(uint64_t first, uint64_t offset, uint64_t seed, uint32_t (&out)[block_values]) {
  uint32_t c0[block_counters], c1[block_counters], c2[block_counters], c3[block_counters];
  for (int64_t i = 0; i < block_counters; ++i) {
    const uint64_t counter = first + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(counter);
    c1[i] = static_cast<uint32_t>(counter >> 32);
    c2[i] = static_cast<uint32_t>(offset);
    c3[i] = static_cast<uint32_t>(offset >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int64_t i = 0; i < block_counters; ++i) {
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
  for (int64_t i = 0; i < block_counters; ++i) {
    out[4 * i + 0] = c0[i];
    out[4 * i + 1] = c1[i];
    out[4 * i + 2] = c2[i];
    out[4 * i + 3] = c3[i];
  }
}

}  // namespace

void dropout(int64_t size, const Dropout& d, const float* x, float* y) {
  const float scale = d.scale;
  if (d.threshold == 0) {
    parallel_ranges(size, piece, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = x[i] * scale;
    });
    return;
  }
  const uint64_t offset = get(d.offset);
  // threshold may be 2^32; what precedes it fits in 32 bits.
  const uint32_t last_dropped = static_cast<uint32_t>(d.threshold - 1);
  parallel_ranges(size, piece, [&](int64_t begin, int64_t end) {
    uint32_t random[block_values];
    for (int64_t i = begin; i < end; i += block_values) {
      philox_block(static_cast<uint64_t>(i / 4), offset, d.seed, random);
      const int64_t count = min(block_values, end - i);
      for (int64_t j = 0; j < count; ++j) {
        const float kept = x[i + j] * scale;
        y[i + j] = random[j] > last_dropped ? kept : 0.0f;
      }
    }
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
