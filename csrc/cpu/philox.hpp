// Random numbers by Philox4x32-10: a function of a key and a counter, in any order, on any thread.
// Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
#pragma once

#include "isa.hpp"

namespace pyconv::cpu::PYCONV_ISA {

constexpr int64_t philox_counters = 64;  // in a block
constexpr int64_t philox_values = 4 * philox_counters;

// The random words of the counters first, first + 1, ...: four each, in the elements' order.
static inline void philox_block(uint64_t first, uint64_t offset, uint64_t seed,
                                uint32_t (&out)[philox_values]) {
  constexpr int64_t group = wide_lanes;
  const wide multiplier0 = wide_broadcast(0xD2511F53u), multiplier1 = wide_broadcast(0xCD9E8D57u);
  uint64_t firsts[group];
  for (int64_t j = 0; j < group; ++j) firsts[j] = first + static_cast<uint64_t>(j);
  wide counters = wide_load(firsts);
  for (int64_t i = 0; i < philox_counters; i += group) {
    // Each lane has one word of a counter in its low half; what is above it counts for nothing.
    wide c0 = counters, c1 = wide_high(c0);
    counters = wide_add(counters, wide_broadcast(group));
    wide c2 = wide_broadcast(offset), c3 = wide_high(c2);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const wide p0 = wide_multiply(multiplier0, c0), p1 = wide_multiply(multiplier1, c2);
      c0 = wide_xor(wide_xor(wide_high(p1), c1), wide_broadcast(k0));
      c1 = p1;
      c2 = wide_xor(wide_xor(wide_high(p0), c3), wide_broadcast(k1));
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    uint64_t words01[group], words23[group];
    wide_store(words01, wide_join(c0, c1));
    wide_store(words23, wide_join(c2, c3));
    for (int64_t j = 0; j < group; ++j) {
      uint32_t* to = out + 4 * (i + j);
      to[0] = static_cast<uint32_t>(words01[j]);
      to[1] = static_cast<uint32_t>(words01[j] >> 32);
      to[2] = static_cast<uint32_t>(words23[j]);
      to[3] = static_cast<uint32_t>(words23[j] >> 32);
    }
  }
}

// body(i, count, random, last_dropped) over [0, size): of the elements from i on, those whose
// random word is at most last_dropped are dropped. With a threshold above 0.
template <class Body>
static inline void drop_in_parallel(int64_t size, const Dropout& dropout, const Body& body) {
  const uint64_t offset = get(dropout.offset);
  // threshold may be 2^32; what precedes it fits in 32 bits.
  const uint32_t last_dropped = static_cast<uint32_t>(dropout.threshold - 1);
  parallel_ranges(size, 64 * philox_values, [&](int64_t begin, int64_t end) {
    uint32_t random[philox_values];
    for (int64_t i = begin; i < end; i += philox_values) {
      philox_block(dropout.first + static_cast<uint64_t>(i / 4), offset, dropout.seed, random);
      body(i, min(philox_values, end - i), random, last_dropped);
    }
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
