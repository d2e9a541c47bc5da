// Dropout. Forward and backward are the same function: y = keep ? x * scale : 0, overwrites y (may
// be x).
//
// The random numbers are counter-based (Dropout in ops.hpp says which element takes which). They do
// not depend on threads, and the backward pass draws them again instead of storing a mask.
#include "operations.hpp"
#include "philox.hpp"

namespace pyconv::cpu::PYCONV_ISA {

void dropout(int64_t size, const Dropout& d, const float* x, float* y) {
  const float scale = d.scale;
  if (d.threshold == 0) {
    parallel_ranges(size, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = x[i] * scale;
    });
    return;
  }
  drop_in_parallel(size, d,
                   [&](int64_t i, int64_t count, const uint32_t* random, uint32_t last_dropped) {
                     for (int64_t j = 0; j < count; ++j) {
                       const float kept = x[i + j] * scale;
                       y[i + j] = random[j] > last_dropped ? kept : 0.0f;
                     }
                   });
}

}  // namespace pyconv::cpu::PYCONV_ISA
