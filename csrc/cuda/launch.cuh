// How kernels are launched, and what they share. Included by every .cu file.
#pragma once

#include "../ops.hpp"
#include "host_device.hpp"
#include "operations.hpp"
#include "runtime.hpp"

// Kernels take another path where the device copies from global to shared memory asynchronously.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define PYCONV_SM80 1
#else
#define PYCONV_SM80 0
#endif

namespace pyconv::cuda {

// Blocks of `shared_bytes` that a multiprocessor is asked to hold: as many as wanted, or as fit
// into its shared memory. CUDA C++ Programming Guide, "Technical Specifications per Compute
// Capability"; every block takes another 1 KB from sm_80 on.
PYCONV_HOST_DEVICE constexpr int resident_blocks(int wanted, size_t shared_bytes) {
#if !PYCONV_SM80
  constexpr size_t kilobytes = 64, reserved = 0;
#elif __CUDA_ARCH__ == 800
  constexpr size_t kilobytes = 164, reserved = 1024;
#elif __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
  constexpr size_t kilobytes = 228, reserved = 1024;
#else
  constexpr size_t kilobytes = 100, reserved = 1024;
#endif
  const int fit = static_cast<int>(kilobytes * 1024 / (shared_bytes + reserved));
  return fit < wanted ? fit : wanted;
}

// A kernel with its name and the threads of its blocks: what is launched, and listed.
template <class... Parameters>
struct KernelOf : Register {
  std::string name;
  void (*function)(Parameters...);
  int threads;

  // `variant` tells instantiations of one template apart.
  KernelOf(const char* name_, void (*function_)(Parameters...), int threads_,
           const std::string& variant = "")
      : Register(name_ + variant, reinterpret_cast<const void*>(function_), threads_),
        name(name_ + variant),
        function(function_),
        threads(threads_) {}

  template <class... Arguments>
  void operator()(dim3 grid, const Arguments&... arguments) const {
    function<<<grid, threads, 0, stream()>>>(arguments...);
    check_launch(name.c_str());
  }
};

// Blocks for a loop over `size` elements in steps of the grid (for_each_index): enough to fill any
// device, never more than a grid may have.
inline dim3 grid_for(int64_t size, int threads) {
  constexpr int64_t most = 1 << 16;
  const int64_t blocks = ceil_div<int64_t>(size, threads);
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

// body(i) for each i in [0, size), spread over the grid.
template <class Body>
__device__ __forceinline__ void for_each_index(int64_t size, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step)
    body(i);
}

// Values that are read or written as one.
template <class T, int lanes>
struct alignas(sizeof(T) * lanes) Pack {
  T lane[lanes];
};

// Whether four values from here on can be read or written as one.
template <class T>
__host__ __device__ bool aligned_to_four(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0;
}

// How many whole groups of 4 values can be accessed as one, of three arrays of this size.
__device__ __forceinline__ int64_t groups_of_4(int64_t size, const float* a, const float* b,
                                               const float* c) {
  return aligned_to_four(a) && aligned_to_four(b) && aligned_to_four(c) ? size / 4 : 0;
}

template <class T>
__device__ __forceinline__ T get(const Scalar<T>& scalar) {
  return scalar.pointer != nullptr ? *scalar.pointer : scalar.value;
}

// max(x, 0), NaN stays NaN.
__device__ __forceinline__ float relu_of(float x) { return x < 0.0f ? 0.0f : x; }

}  // namespace pyconv::cuda
