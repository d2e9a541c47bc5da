// What host and device code share; plain C++ as well.
#pragma once

#ifdef __CUDACC__
#define PYCONV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PYCONV_HOST_DEVICE
#endif

namespace pyconv::cuda {

constexpr int warp_size = 32;

template <class T>
PYCONV_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace pyconv::cuda
