#include <cuda_runtime_api.h>

cudaError_t describe_first(int* out);
cudaError_t describe_second(int* out);

/// Fills out[0..3] with what the first source says and out[4] with what the second one says.
extern "C" __attribute__((visibility("default"))) int report(int* out) {
  const cudaError_t error = describe_first(out);
  return error == cudaSuccess ? describe_second(out + 4) : error;
}
