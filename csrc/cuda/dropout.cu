// Dropout. Forward and backward are the same function: y = keep ? x * scale : 0, overwrites y (may
// be x).
//
// The random numbers are counter-based (Dropout in ../ops.hpp says which element takes which), so
// they do not depend on threads, and the backward pass draws them again instead of storing a mask.
#include "launch.cuh"
#include "philox.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;

// Four elements, which share one draw, are one thread's. `aligned`: both arrays, to 16 bytes.
__global__ void __launch_bounds__(threads)
    dropout_kernel(int64_t size, Dropout d, bool aligned, const float* x, float* y) {
  const uint64_t offset = d.threshold > 0 ? get(d.offset) : 0;
  const auto value = [&](unsigned word, float from) {
    return word >= d.threshold ? from * d.scale : 0.0f;
  };
  for_each_index(ceil_div<int64_t>(size, 4), [&](int64_t i) {
    uint4 word = make_uint4(0, 0, 0, 0);
    if (d.threshold > 0) word = philox4x32_10(d.first + static_cast<uint64_t>(i), offset, d.seed);
    const int64_t first = 4 * i;
    if (aligned && first + 4 <= size) {
      const float4 from = reinterpret_cast<const float4*>(x)[i];
      reinterpret_cast<float4*>(y)[i] = make_float4(value(word.x, from.x), value(word.y, from.y),
                                                    value(word.z, from.z), value(word.w, from.w));
    } else {
      y[first] = value(word.x, x[first]);
      if (first + 1 < size) y[first + 1] = value(word.y, x[first + 1]);
      if (first + 2 < size) y[first + 2] = value(word.z, x[first + 2]);
      if (first + 3 < size) y[first + 3] = value(word.w, x[first + 3]);
    }
  });
}

const KernelOf dropout_launch{"dropout", dropout_kernel, threads};

}  // namespace

void dropout(int64_t size, const Dropout& d, const float* x, float* y) {
  if (size == 0) return;
  const bool aligned = aligned_to_four(x) && aligned_to_four(y);
  dropout_launch(grid_for(ceil_div<int64_t>(size, 4), threads), size, d, aligned, x, y);
}

}  // namespace pyconv::cuda
