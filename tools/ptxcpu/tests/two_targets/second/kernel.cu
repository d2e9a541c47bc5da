#include <cuda_runtime.h>

namespace {

__global__ void describe(int* out) { out[0] = 2; }

struct Launcher {
  explicit Launcher(int* out) { describe<<<1, 1>>>(out); }
};

}  // namespace

cudaError_t describe_second(int* out) {
  const Launcher launcher(out);
  return cudaGetLastError();
}
