// The ceiling that benchmarks compare with: as many independent multiply-adds as the registers
// hold, nothing else.
#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

double peak_flops(int64_t iterations) {
  constexpr int chains = 2 * tile_rows[2];
  const int threads = num_threads();
  Scratch memory;
  const int64_t sums_at = memory.reserve<float>(threads * lanes);
  memory.allocate();
  parallel_for(threads, threads, [&](int64_t item, int) {
    vec sum[chains];
#pragma GCC unroll 32
    for (int i = 0; i < chains; ++i) sum[i] = broadcast(static_cast<float>(i));
    const vec a = broadcast(0.999f), b = broadcast(0.001f);
    for (int64_t k = 0; k < iterations; ++k) {
#pragma GCC unroll 32
      for (int i = 0; i < chains; ++i) sum[i] = fmadd(sum[i], a, b);
    }
    vec total = zero();
#pragma GCC unroll 32
    for (int i = 0; i < chains; ++i) total = add(total, sum[i]);
    store(memory.at<float>(sums_at) + item * lanes, total);  // or the loop would be dropped
  });
  return 2.0 * static_cast<double>(threads) * static_cast<double>(iterations) * chains * lanes;
}

}  // namespace pyconv::cpu::PYCONV_ISA
