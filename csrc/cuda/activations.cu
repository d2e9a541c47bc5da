// Activations with an exponential in them, and the leaky ReLU, forward and backward.
//
//               y                                   dy / dx, of y
//   sigmoid     1 / (1 + exp(-x))                   y (1 - y)
//   tanh        (exp(2x) - 1) / (exp(2x) + 1)       (1 - y) (1 + y)
//   leaky_relu  x where x > 0, else slope * x       1 where y > 0, else slope
//   softplus    log(1 + exp(x))                     1 - exp(-y)
//
//   activate           y = f(x)                     overwrites y (may be x)
//   activate_backward  dx = dy * f'                 overwrites dx (may be dy or y)
//
// Exponentials are taken of -|x| only, so nothing overflows; NaN stays NaN. expf, expm1f, log1pf
// and tanhf are CUDA's, exact to 1 or 2 units in the last place. Bound by memory: four values an
// access where the arrays' alignment allows it.
#include "launch.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;

template <Pointwise function>
__device__ __forceinline__ float value(float x, float slope) {
  if constexpr (function == Pointwise::sigmoid) {
    const float t = expf(-fabsf(x));
    return (x > 0.0f ? 1.0f : t) / (1.0f + t);
  } else if constexpr (function == Pointwise::tanh) {
    return tanhf(x);
  } else if constexpr (function == Pointwise::leaky_relu) {
    return x * (x > 0.0f ? 1.0f : slope);
  } else {
    return relu_of(x) + log1pf(expf(-fabsf(x)));
  }
}

template <Pointwise function>
__device__ __forceinline__ float gradient(float dy, float y, float slope) {
  if constexpr (function == Pointwise::sigmoid) {
    return dy * (y * (1.0f - y));
  } else if constexpr (function == Pointwise::tanh) {
    return dy * ((1.0f - y) * (1.0f + y));
  } else if constexpr (function == Pointwise::leaky_relu) {
    return dy * (y > 0.0f ? 1.0f : slope);
  } else {
    return dy * -expm1f(-y);
  }
}

template <Pointwise function>
__global__ void __launch_bounds__(threads)
    activate_kernel(int64_t size, float slope, const float* x, float* y) {
  const int64_t groups = groups_of_4(size, x, y, y);
  for_each_index(groups, [&](int64_t i) {
    const float4 v = reinterpret_cast<const float4*>(x)[i];
    reinterpret_cast<float4*>(y)[i] =
        make_float4(value<function>(v.x, slope), value<function>(v.y, slope),
                    value<function>(v.z, slope), value<function>(v.w, slope));
  });
  const int64_t done = 4 * groups;
  for_each_index(size - done,
                 [&](int64_t i) { y[done + i] = value<function>(x[done + i], slope); });
}

template <Pointwise function>
__global__ void __launch_bounds__(threads)
    activate_backward_kernel(int64_t size, float slope, const float* dy, const float* y,
                             float* dx) {
  const int64_t groups = groups_of_4(size, dy, y, dx);
  for_each_index(groups, [&](int64_t i) {
    const float4 g = reinterpret_cast<const float4*>(dy)[i];
    const float4 v = reinterpret_cast<const float4*>(y)[i];
    reinterpret_cast<float4*>(dx)[i] =
        make_float4(gradient<function>(g.x, v.x, slope), gradient<function>(g.y, v.y, slope),
                    gradient<function>(g.z, v.z, slope), gradient<function>(g.w, v.w, slope));
  });
  const int64_t done = 4 * groups;
  for_each_index(size - done, [&](int64_t i) {
    dx[done + i] = gradient<function>(dy[done + i], y[done + i], slope);
  });
}

constexpr const char* name_of(Pointwise function) {
  switch (function) {
    case Pointwise::sigmoid:
      return " sigmoid";
    case Pointwise::tanh:
      return " tanh";
    case Pointwise::leaky_relu:
      return " leaky_relu";
    default:
      return " softplus";
  }
}

template <Pointwise function>
const KernelOf activate_launch{"activate", activate_kernel<function>, threads, name_of(function)};
template <Pointwise function>
const KernelOf activate_backward_launch{"activate_backward", activate_backward_kernel<function>,
                                        threads, name_of(function)};

dim3 grid(int64_t size) { return grid_for(ceil_div<int64_t>(size, 4), threads); }

template <Pointwise function>
void run(int64_t size, float slope, const float* x, float* y) {
  activate_launch<function>(grid(size), size, slope, x, y);
}

template <Pointwise function>
void run_backward(int64_t size, float slope, const float* dy, const float* y, float* dx) {
  activate_backward_launch<function>(grid(size), size, slope, dy, y, dx);
}

}  // namespace

void activate(int64_t size, Pointwise function, float slope, const float* x, float* y) {
  if (size == 0) return;
  switch (function) {
    case Pointwise::sigmoid:
      return run<Pointwise::sigmoid>(size, slope, x, y);
    case Pointwise::tanh:
      return run<Pointwise::tanh>(size, slope, x, y);
    case Pointwise::leaky_relu:
      return run<Pointwise::leaky_relu>(size, slope, x, y);
    case Pointwise::softplus:
      return run<Pointwise::softplus>(size, slope, x, y);
  }
}

void activate_backward(int64_t size, Pointwise function, float slope, const float* dy,
                       const float* y, float* dx) {
  if (size == 0) return;
  switch (function) {
    case Pointwise::sigmoid:
      return run_backward<Pointwise::sigmoid>(size, slope, dy, y, dx);
    case Pointwise::tanh:
      return run_backward<Pointwise::tanh>(size, slope, dy, y, dx);
    case Pointwise::leaky_relu:
      return run_backward<Pointwise::leaky_relu>(size, slope, dy, y, dx);
    case Pointwise::softplus:
      return run_backward<Pointwise::softplus>(size, slope, dy, y, dx);
  }
}

}  // namespace pyconv::cuda
