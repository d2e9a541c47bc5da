// Rounding to bfloat16, as float32 numbers: what layers work on whose policy is mixed_bfloat16.
//
//   round_bfloat16  y = the nearest number of bfloat16    overwrites y (may be x)
//
// In integers, by the rule that csrc/cpu/round_bfloat16.cpp explains. Bound by memory: four values
// an access where the arrays' alignment allows it.
#include "launch.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;

__device__ __forceinline__ float nearest_bfloat16(float x) {
  const unsigned bits = __float_as_uint(x);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const unsigned rounded = is_nan ? bits | 0x00400000u : bits + 0x7fffu + (bits >> 16 & 1u);
  return __uint_as_float(rounded & 0xffff0000u);
}

__global__ void __launch_bounds__(threads)
    round_bfloat16_kernel(int64_t size, const float* x, float* y) {
  const int64_t groups = groups_of_4(size, x, y, y);
  for_each_index(groups, [&](int64_t i) {
    const float4 v = reinterpret_cast<const float4*>(x)[i];
    reinterpret_cast<float4*>(y)[i] = make_float4(nearest_bfloat16(v.x), nearest_bfloat16(v.y),
                                                  nearest_bfloat16(v.z), nearest_bfloat16(v.w));
  });
  const int64_t done = 4 * groups;
  for_each_index(size - done, [&](int64_t i) { y[done + i] = nearest_bfloat16(x[done + i]); });
}

const KernelOf round_launch{"round_bfloat16", round_bfloat16_kernel, threads};

}  // namespace

void round_bfloat16(int64_t size, const float* x, float* y) {
  if (size == 0) return;
  round_launch(grid_for(ceil_div<int64_t>(size, 4), threads), size, x, y);
}

}  // namespace pyconv::cuda
