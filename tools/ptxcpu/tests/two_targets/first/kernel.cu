#include <cuda_runtime.h>

#include <cstring>

#include "per_target.hpp"

namespace {

__global__ void describe(int* out) {
#ifdef __CUDA_ARCH__
  out[0] = __CUDA_ARCH__;
#endif
  out[1] = ADDEND + kFromHeader;
}

}  // namespace

/// An inline function's static variable: every library must have its own.
inline int count_calls() {
  static int calls = 0;
  return ++calls;
}

cudaError_t describe_first(int* out) {
  describe<<<1, 1>>>(out);
  out[2] = count_calls();
  out[3] = static_cast<int>(strlen(GREETING));
  return cudaGetLastError();
}
