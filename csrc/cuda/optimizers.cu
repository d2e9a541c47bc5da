// One step of an optimizer over a flat array of parameters, in place: w and the slots are read and
// overwritten, dw is read. The formulas are Keras's (keras/src/optimizers).
//
//   sgd_step      v = momentum * v - lr * g;  w += v, or with Nesterov  w += momentum * v - lr * g
//   rmsprop_step  v = rho * v + rest * g^2;  w -= lr * g / sqrt(v + epsilon)
//   adam_step     m += (g - m) * rest_1;  v += (g^2 - v) * rest_2;
//                 w -= alpha * m / (sqrt(v) + epsilon),  alpha as below
//
// alpha = lr * sqrt(1 - beta_2^step) / (1 - beta_1^step), and rest_i = 1 - beta_i. What is 1 minus
// something is taken in double: in float, 1 - 0.999 is off by 1e-5 of its value.
//
// Products and sums are rounded one by one (__fmul_rn and so on are never fused), as on the CPU.
#include "launch.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;
constexpr int parameters_per_thread = 4;  // adam_step's alpha is computed once a block

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float subtract(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }

// base^exponent by squaring: an error of a few ulp for each of at most 64 rounds.
__device__ double power(double base, uint64_t exponent) {
  double result = 1.0;
  for (; exponent != 0; exponent >>= 1, base *= base) {
    if (exponent & 1) result *= base;
  }
  return result;
}

// velocity may be null: no momentum.
__global__ void __launch_bounds__(threads)
    sgd_kernel(int64_t size, float* __restrict__ w, const float* __restrict__ dw,
               float* __restrict__ velocity, Scalar<float> rate, float momentum, bool nesterov) {
  const float learning_rate = get(rate);
  for_each_index(size, [&](int64_t i) {
    const float step = multiply(learning_rate, dw[i]);
    if (velocity == nullptr) {
      w[i] = subtract(w[i], step);
      return;
    }
    const float v = subtract(multiply(momentum, velocity[i]), step);
    velocity[i] = v;
    w[i] = add(w[i], nesterov ? subtract(multiply(momentum, v), step) : v);
  });
}

__global__ void __launch_bounds__(threads)
    rmsprop_kernel(int64_t size, float* __restrict__ w, const float* __restrict__ dw,
                   float* __restrict__ velocity, Scalar<float> rate, float rho, float rest,
                   float epsilon) {
  const float learning_rate = get(rate);
  for_each_index(size, [&](int64_t i) {
    const float g = dw[i];
    const float v = add(multiply(rho, velocity[i]), multiply(rest, multiply(g, g)));
    velocity[i] = v;
    w[i] = subtract(w[i], multiply(learning_rate, g) / sqrtf(add(v, epsilon)));
  });
}

__global__ void __launch_bounds__(threads)
    adam_kernel(int64_t size, float* __restrict__ w, const float* __restrict__ dw,
                float* __restrict__ m, float* __restrict__ v, Scalar<float> rate,
                Scalar<uint64_t> step, double beta_1, double beta_2, float rest_1, float rest_2,
                float epsilon) {
  __shared__ float shared_alpha;
  if (threadIdx.x == 0) {
    const uint64_t t = get(step);
    shared_alpha = static_cast<float>(static_cast<double>(get(rate)) *
                                      sqrt(1.0 - power(beta_2, t)) / (1.0 - power(beta_1, t)));
  }
  __syncthreads();
  const float alpha = shared_alpha;
  for_each_index(size, [&](int64_t i) {
    const float g = dw[i];
    const float mean = add(m[i], multiply(subtract(g, m[i]), rest_1));
    const float square = add(v[i], multiply(subtract(multiply(g, g), v[i]), rest_2));
    m[i] = mean;
    v[i] = square;
    w[i] = subtract(w[i], multiply(alpha, mean) / add(sqrtf(square), epsilon));
  });
}

const KernelOf sgd_launch{"sgd_step", sgd_kernel, threads};
const KernelOf rmsprop_launch{"rmsprop_step", rmsprop_kernel, threads};
const KernelOf adam_launch{"adam_step", adam_kernel, threads};

dim3 grid(int64_t size) {
  return grid_for(ceil_div<int64_t>(size, parameters_per_thread), threads);
}

}  // namespace

void sgd_step(int64_t size, float* w, const float* dw, float* velocity, Scalar<float> learning_rate,
              float momentum, bool nesterov) {
  if (size == 0) return;
  sgd_launch(grid(size), size, w, dw, velocity, learning_rate, momentum, nesterov);
}

void rmsprop_step(int64_t size, float* w, const float* dw, float* velocity,
                  Scalar<float> learning_rate, float rho, float rest, float epsilon) {
  if (size == 0) return;
  rmsprop_launch(grid(size), size, w, dw, velocity, learning_rate, rho, rest, epsilon);
}

void adam_step(int64_t size, float* w, const float* dw, float* m, float* v,
               Scalar<float> learning_rate, Scalar<uint64_t> step, double beta_1, double beta_2,
               float epsilon) {
  if (size == 0) return;
  adam_launch(grid(size), size, w, dw, m, v, learning_rate, step, beta_1, beta_2,
              static_cast<float>(1.0 - beta_1), static_cast<float>(1.0 - beta_2), epsilon);
}

}  // namespace pyconv::cuda
