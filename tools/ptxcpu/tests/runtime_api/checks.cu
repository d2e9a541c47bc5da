// Calls of the CUDA runtime that launchers make, with the results that the real runtime gives.
#include <cstring>
#include <vector>

#include "check.hpp"

int count_in_twin();

static __device__ int counter;

static __global__ void increment() { atomicAdd(&counter, 1); }

namespace {

__constant__ float weights[4] = {1, 2, 3, 4};

__global__ void scale(float* out, const float* in, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = weights[i % 4] * in[i];
}

__global__ void __launch_bounds__(BLOCK_LIMIT) bounded(int* out) { out[threadIdx.x] = threadIdx.x; }

__global__ void static_and_dynamic(float* out) {
  __shared__ float fixed[1024];
  extern __shared__ float flexible[];
  fixed[threadIdx.x] = 1;
  flexible[threadIdx.x] = 2;
  __syncthreads();
  out[threadIdx.x] = fixed[threadIdx.x ^ 1] + flexible[threadIdx.x ^ 1];
}

struct Shape {
  int height;
  int width;
  float* data;
};

__global__ void fill_shape(Shape shape, double value) {
  for (int i = threadIdx.x; i < shape.height * shape.width; i += blockDim.x) shape.data[i] = value;
}

__global__ void assert_positive(const int* value) {
  if (*value <= 0) __trap();
}

/// Reads the error as a launcher does, which also clears it if it is not sticky.
cudaError_t launch_error() { return cudaGetLastError(); }

CHECK(launch_limits) {
  std::vector<int> buffer(BLOCK_LIMIT);
  int* memory = buffer.data();
  bounded<<<1, BLOCK_LIMIT>>>(memory);
  EXPECT(launch_error() == cudaSuccess);
  bounded<<<1, BLOCK_LIMIT + 1>>>(memory);
  EXPECT(launch_error() == cudaErrorInvalidValue);
  EXPECT(launch_error() == cudaSuccess);
  increment<<<1, 1025>>>();
  EXPECT(launch_error() == cudaErrorInvalidConfiguration);
  increment<<<dim3(1, 65536), 1>>>();
  EXPECT(launch_error() == cudaErrorInvalidConfiguration);
  increment<<<0, 1>>>();
  EXPECT(launch_error() == cudaErrorInvalidConfiguration);
  increment<<<1, dim3(1, 1, 65)>>>();
  EXPECT(launch_error() == cudaErrorInvalidConfiguration);
}

CHECK(shared_memory_limits) {
  std::vector<float> out_buffer(1024);
  float* out = out_buffer.data();
  const int limit = 232448;
  const int fixed = 4096;
  static_and_dynamic<<<1, 1024, 49152 - fixed>>>(out);
  EXPECT(launch_error() == cudaSuccess);
  EXPECT(out[0] == 3 && out[1023] == 3);
  static_and_dynamic<<<1, 1024, 49152 - fixed + 4>>>(out);
  EXPECT(launch_error() == cudaErrorInvalidValue);
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  EXPECT(cudaFuncSetAttribute(static_and_dynamic, attribute, limit) == cudaErrorInvalidValue);
  EXPECT(cudaFuncSetAttribute(static_and_dynamic, attribute, limit - fixed) == cudaSuccess);
  cudaGetLastError();
  static_and_dynamic<<<1, 1024, limit - fixed>>>(out);
  EXPECT(launch_error() == cudaSuccess);
  cudaFuncAttributes attributes;
  EXPECT(cudaFuncGetAttributes(&attributes, static_and_dynamic) == cudaSuccess);
  EXPECT(attributes.sharedSizeBytes == 4096);
  int blocks = 0;
  EXPECT(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, static_and_dynamic, 1024, 1024) ==
         cudaSuccess);
  EXPECT(blocks == 2);
}

CHECK(memory) {
  const int n = 1000;
  std::vector<float> host(n, 2.f);
  float* in = nullptr;
  float* out = nullptr;
  EXPECT(cudaMalloc(&in, n * sizeof(float)) == cudaSuccess);
  EXPECT(cudaMalloc(&out, n * sizeof(float)) == cudaSuccess);
  EXPECT(cudaMemcpy(in, host.data(), n * sizeof(float), cudaMemcpyHostToDevice) == cudaSuccess);
  EXPECT(cudaMemcpy(in, host.data(), n * sizeof(float) + 1, cudaMemcpyHostToDevice) ==
         cudaErrorInvalidValue);
  cudaGetLastError();
  scale<<<(n + 127) / 128, 128>>>(out, in, n);
  EXPECT(launch_error() == cudaSuccess);
  const float other_weights[2] = {10, 20};
  EXPECT(cudaMemcpyToSymbol(weights, other_weights, sizeof other_weights, 2 * sizeof(float)) ==
         cudaSuccess);
  scale<<<1, 4>>>(out, in, 4);
  EXPECT(cudaDeviceSynchronize() == cudaSuccess);
  EXPECT(cudaMemcpy(host.data(), out, n * sizeof(float), cudaMemcpyDeviceToHost) == cudaSuccess);
  EXPECT(host[0] == 2 && host[1] == 4 && host[2] == 20 && host[3] == 40 && host[999] == 8);
  fill_shape<<<1, 32>>>(Shape{10, 100, out}, 5.0);
  EXPECT(launch_error() == cudaSuccess && out[999] == 5);
  EXPECT(cudaFree(in) == cudaSuccess);
  EXPECT(cudaFree(out) == cudaSuccess);
  EXPECT(cudaFree(host.data()) == cudaErrorInvalidValue);
  cudaGetLastError();
}

CHECK(same_names_in_two_files) {
  increment<<<3, 4>>>();
  int value = 0;
  EXPECT(cudaMemcpyFromSymbol(&value, counter, sizeof value) == cudaSuccess);
  EXPECT(value == 12);
  EXPECT(count_in_twin() == 100);
}

CHECK(streams_and_events) {
  cudaStream_t stream;
  cudaEvent_t start;
  cudaEvent_t end;
  EXPECT(cudaStreamCreate(&stream) == cudaSuccess);
  EXPECT(cudaEventCreate(&start) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess);
  EXPECT(cudaEventRecord(start, stream) == cudaSuccess);
  increment<<<1, 32, 0, stream>>>();
  EXPECT(cudaEventRecord(end, stream) == cudaSuccess);
  float milliseconds = -1;
  EXPECT(cudaEventElapsedTime(&milliseconds, start, end) == cudaSuccess && milliseconds >= 0);
  EXPECT(cudaStreamSynchronize(stream) == cudaSuccess);
  EXPECT(cudaEventDestroy(start) == cudaSuccess && cudaEventDestroy(end) == cudaSuccess);
  EXPECT(cudaStreamDestroy(stream) == cudaSuccess);
  increment<<<1, 32, 0, stream>>>();
  EXPECT(launch_error() == cudaErrorInvalidResourceHandle);
}

CHECK(launch_functions) {
  std::vector<int> buffer(BLOCK_LIMIT);
  int* memory = buffer.data();
  cudaLaunchConfig_t config = {};
  config.gridDim = 1;
  config.blockDim = 32;
  EXPECT(cudaLaunchKernelEx(&config, bounded, memory) == cudaSuccess);
  void* arguments[] = {&memory};
  EXPECT(cudaLaunchKernel(bounded, dim3(1), dim3(32), arguments, 0, nullptr) == cudaSuccess);
  EXPECT(memory[31] == 31);
}

CHECK(faults) {
  float* buffer = nullptr;
  EXPECT(cudaMalloc(&buffer, 100 * sizeof(float)) == cudaSuccess);
  scale<<<1, 128>>>(buffer, buffer, 101);
  EXPECT(cudaPeekAtLastError() == cudaErrorIllegalAddress);
  EXPECT(cudaGetLastError() == cudaErrorIllegalAddress);
  EXPECT(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
  EXPECT(strstr(ptxcpu_last_error_message(), "thread (100,0,0)") != nullptr);
  EXPECT(cudaDeviceReset() == cudaSuccess);
  scale<<<1, 1>>>(reinterpret_cast<float*>(reinterpret_cast<char*>(buffer) + 2), buffer, 1);
  EXPECT(cudaDeviceSynchronize() == cudaErrorMisalignedAddress);
  EXPECT(cudaDeviceReset() == cudaSuccess);
  assert_positive<<<1, 1>>>(reinterpret_cast<int*>(buffer));  // filled with 0xff, thus -1
  EXPECT(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
  EXPECT(cudaDeviceReset() == cudaSuccess);
  EXPECT(strcmp(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress") == 0);
  EXPECT(cudaFree(buffer) == cudaSuccess);
}

CHECK(device) {
  cudaDeviceProp properties;
  EXPECT(cudaGetDeviceProperties(&properties, 0) == cudaSuccess);
  EXPECT(properties.major == 9 && properties.sharedMemPerBlockOptin == 232448);
  int device = -1;
  EXPECT(cudaGetDevice(&device) == cudaSuccess && device == 0);
  EXPECT(cudaSetDevice(1) == cudaErrorInvalidDevice);
  cudaGetLastError();
  int warp = 0;
  EXPECT(cudaDeviceGetAttribute(&warp, cudaDevAttrWarpSize, 0) == cudaSuccess && warp == 32);
}

}  // namespace
