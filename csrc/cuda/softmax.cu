// Softmax over rows of k values, and the categorical cross-entropy fused with it.
//
//   softmax                y = exp(x - max) / sum                     overwrites y (may be x)
//   softmax_backward       dx = y * (dy - sum(dy * y))                overwrites dx (may be dy or
//   y) softmax_cross_entropy  loss = sum t * (log sum exp(z) - z)  per row,
//                          dz = (softmax(z) * sum(t) - t) / batch     overwrites all three
//
// With a batch of n, dz is the gradient of the mean loss over the rows. Subtracting the row's
// maximum keeps exp in range for any finite logits, and the loss never takes the logarithm of a
// probability that may have underflowed.
//
// A warp computes a row: lane l takes elements l, l + 32, ..., and what the lanes found is combined
// as a tree, so that a sum's order is fixed. A lane only reads elements that it wrote itself.
#include "launch.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;

// body(row) for each row, called by all 32 lanes of a warp at once.
template <class Body>
__device__ __forceinline__ void for_each_row(int64_t n, const Body& body) {
  constexpr int warps = threads / warp_size;
  const int64_t step = static_cast<int64_t>(gridDim.x) * warps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / warp_size; row < n;
       row += step)
    body(row);
}

// body(i) for this lane's elements of a row.
template <class Body>
__device__ __forceinline__ void for_each_column(int64_t k, const Body& body) {
  for (int64_t i = threadIdx.x % warp_size; i < k; i += warp_size) body(i);
}

template <class T>
__device__ __forceinline__ T other_lane(T value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}

// The sum of all lanes' values, the same bits in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int distance = warp_size / 2; distance > 0; distance /= 2)
    value += other_lane(value, distance);
  return value;
}

// The maximum, NaN if either is.
__device__ __forceinline__ float larger(float a, float b) { return a >= b || a != a ? a : b; }

// The maximum of a row, NaN if it holds one.
__device__ __forceinline__ float row_max(const float* x, int64_t k) {
  float best = -INFINITY;
  for_each_column(k, [&](int64_t i) { best = larger(best, x[i]); });
  for (int distance = warp_size / 2; distance > 0; distance /= 2)
    best = larger(best, other_lane(best, distance));
  return best;
}

// y = softmax(x) for one row; returns the sum of exp(x - max).
__device__ __forceinline__ float softmax_row(const float* x, int64_t k, float maximum, float* y) {
  float sum = 0.0f;
  for_each_column(k, [&](int64_t i) {
    const float value = expf(x[i] - maximum);
    sum += value;
    y[i] = value;
  });
  sum = warp_sum(sum);
  const float scale = 1.0f / sum;
  for_each_column(k, [&](int64_t i) { y[i] *= scale; });
  return sum;
}

__global__ void __launch_bounds__(threads)
    softmax_kernel(int64_t n, int64_t k, const float* x, float* y) {
  for_each_row(n, [&](int64_t row) {
    const float* const from = x + row * k;
    softmax_row(from, k, row_max(from, k), y + row * k);
  });
}

__global__ void __launch_bounds__(threads)
    softmax_backward_kernel(int64_t n, int64_t k, const float* dy, const float* y, float* dx) {
  for_each_row(n, [&](int64_t row) {
    const float* const g = dy + row * k;
    const float* const p = y + row * k;
    float dot = 0.0f;
    for_each_column(k, [&](int64_t i) { dot += g[i] * p[i]; });
    const float mean = warp_sum(dot);
    for_each_column(k, [&](int64_t i) { dx[row * k + i] = p[i] * (g[i] - mean); });
  });
}

__global__ void __launch_bounds__(threads)
    cross_entropy_kernel(int64_t n, int64_t k, int64_t batch, const float* logits,
                         const float* labels, float* loss, float* probabilities, float* dlogits) {
  const float divisor = static_cast<float>(batch);
  for_each_row(n, [&](int64_t row) {
    const float* const z = logits + row * k;
    const float* const t = labels + row * k;
    float* const p = probabilities + row * k;
    const float maximum = row_max(z, k);
    const double log_sum = static_cast<double>(logf(softmax_row(z, k, maximum, p)));
    // The difference of two finite logits may be beyond float; a label of 0 times it must be 0.
    double sum = 0.0;
    float mass = 0.0f;
    for_each_column(k, [&](int64_t i) {
      mass += t[i];
      sum += static_cast<double>(t[i]) *
             (log_sum - (static_cast<double>(z[i]) - static_cast<double>(maximum)));
    });
    sum = warp_sum(sum);
    mass = warp_sum(mass);
    if (threadIdx.x % warp_size == 0) loss[row] = static_cast<float>(sum);
    for_each_column(k, [&](int64_t i) { dlogits[row * k + i] = (p[i] * mass - t[i]) / divisor; });
  });
}

const KernelOf softmax_launch{"softmax", softmax_kernel, threads};
const KernelOf softmax_backward_launch{"softmax_backward", softmax_backward_kernel, threads};
const KernelOf cross_entropy_launch{"softmax_cross_entropy", cross_entropy_kernel, threads};

dim3 grid(int64_t n) { return grid_for(n * warp_size, threads); }

}  // namespace

void softmax(int64_t n, int64_t k, const float* x, float* y) {
  if (n == 0) return;
  softmax_launch(grid(n), n, k, x, y);
}

void softmax_backward(int64_t n, int64_t k, const float* dy, const float* y, float* dx) {
  if (n == 0) return;
  softmax_backward_launch(grid(n), n, k, dy, y, dx);
}

void softmax_cross_entropy(int64_t n, int64_t k, int64_t batch, const float* logits,
                           const float* labels, float* loss, float* probabilities, float* dlogits) {
  if (n == 0) return;
  cross_entropy_launch(grid(n), n, k, batch, logits, labels, loss, probabilities, dlogits);
}

}  // namespace pyconv::cuda
