// Copies from global to shared memory that do not wait (cp.async, sm_80 and later). PTX ISA,
// section "Data Movement and Conversion Instructions: Asynchronous copy".
#pragma once

#include "launch.cuh"

namespace pyconv::cuda {

// Starts the copy of 16 bytes; zeros where not valid (`global` is not read then).
__device__ __forceinline__ void copy_16_bytes_async(float* shared, const float* global,
                                                    bool valid) {
#if PYCONV_SM80
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  *reinterpret_cast<float4*>(shared) =
      valid ? *reinterpret_cast<const float4*>(global) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#endif
}

// Waits for all copies that this thread has started; a barrier makes those of others visible.
__device__ __forceinline__ void wait_for_copies() {
#if PYCONV_SM80
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace pyconv::cuda
