// Dropout. Forward and backward are the same function: y = keep ? x * scale : 0, overwrites y (may
// be x).
//
// The random numbers are counter-based (Dropout in ops.hpp says which element takes which). They do
// not depend on threads, and the backward pass draws them again instead of storing a mask.
#include "operations.hpp"
#include "philox.hpp"

namespace pyconv::cpu::PYCONV_ISA {

static constexpr int64_t piece = 64 * philox_values;

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
    uint32_t random[philox_values];
    for (int64_t i = begin; i < end; i += philox_values) {
      philox_block(static_cast<uint64_t>(i / 4), offset, d.seed, random);
      const int64_t count = min(philox_values, end - i);
      for (int64_t j = 0; j < count; ++j) {
        const float kept = x[i + j] * scale;
        y[i + j] = random[j] > last_dropped ? kept : 0.0f;
      }
    }
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
