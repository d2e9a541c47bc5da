// ReLU by itself, forward and backward; convolution and dense layers have it built in.
//
//   relu           y = max(x, 0), NaN stays NaN       overwrites y (may be x)
//   relu_backward  dx = dy where y > 0, else 0        overwrites dx (may be dy)
//
// Bound by memory: four values an access where the arrays' alignment allows it.
#include "launch.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;

__global__ void __launch_bounds__(threads) relu_kernel(int64_t size, const float* x, float* y) {
  const int64_t groups = groups_of_4(size, x, y, y);
  for_each_index(groups, [&](int64_t i) {
    const float4 v = reinterpret_cast<const float4*>(x)[i];
    reinterpret_cast<float4*>(y)[i] =
        make_float4(relu_of(v.x), relu_of(v.y), relu_of(v.z), relu_of(v.w));
  });
  const int64_t done = 4 * groups;
  for_each_index(size - done, [&](int64_t i) { y[done + i] = relu_of(x[done + i]); });
}

__device__ __forceinline__ float where_positive(float y, float dy) { return y > 0.0f ? dy : 0.0f; }

__global__ void __launch_bounds__(threads)
    relu_backward_kernel(int64_t size, const float* dy, const float* y, float* dx) {
  const int64_t groups = groups_of_4(size, dy, y, dx);
  for_each_index(groups, [&](int64_t i) {
    const float4 g = reinterpret_cast<const float4*>(dy)[i];
    const float4 v = reinterpret_cast<const float4*>(y)[i];
    reinterpret_cast<float4*>(dx)[i] =
        make_float4(where_positive(v.x, g.x), where_positive(v.y, g.y), where_positive(v.z, g.z),
                    where_positive(v.w, g.w));
  });
  const int64_t done = 4 * groups;
  for_each_index(size - done,
                 [&](int64_t i) { dx[done + i] = where_positive(y[done + i], dy[done + i]); });
}

const KernelOf relu_launch{"relu", relu_kernel, threads};
const KernelOf relu_backward_launch{"relu_backward", relu_backward_kernel, threads};

dim3 grid(int64_t size) { return grid_for(ceil_div<int64_t>(size, 4), threads); }

}  // namespace

void relu(int64_t size, const float* x, float* y) {
  if (size == 0) return;
  relu_launch(grid(size), size, x, y);
}

void relu_backward(int64_t size, const float* dy, const float* y, float* dx) {
  if (size == 0) return;
  relu_backward_launch(grid(size), size, dy, y, dx);
}

}  // namespace pyconv::cuda
