// Kernels with one mistake each, which the parameter `planted` turns on. Blocks have 128 threads.
// Without the mistake, every kernel reverses the 128 floats of `in`.
namespace {

constexpr int kThreads = 128;

__device__ void copy_async(float* shared, const float* global) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(global));
}

}  // namespace

extern "C" {

__global__ void missing_barrier(float* out, const float* in, int planted) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = in[threadIdx.x];
  if (!planted) __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

__global__ void missing_wait_group(float* out, const float* in, int planted) {
  __shared__ float tile[kThreads];
  copy_async(&tile[threadIdx.x], &in[threadIdx.x]);
  asm volatile("cp.async.commit_group;");
  if (!planted) asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
  asm volatile("cp.async.wait_group 0;");
}

__global__ void divergent_barrier(float* out, const float* in, int planted) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = in[threadIdx.x];
  if (!planted || threadIdx.x % 2 == 0) {
    __syncthreads();
    tile[threadIdx.x] += 0.f;
  }
  __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

__global__ void skipped_barrier(float* out, const float* in, int planted) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = in[threadIdx.x];
  if (!planted || threadIdx.x % 2 == 0) __syncthreads();
  __syncwarp();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

__global__ void shared_out_of_bounds(float* out, const float* in, int planted) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x + planted] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

__global__ void shared_below_zero(float* out, const float* in, int planted) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - planted - static_cast<int>(threadIdx.x)];
}

__global__ void global_read_out_of_bounds(float* out, const float* in, int planted) {
  out[kThreads - 1 - threadIdx.x] = in[threadIdx.x + planted];
}

__global__ void global_write_out_of_bounds(float* out, const float* in, int planted) {
  out[kThreads - 1 - threadIdx.x + planted] = in[threadIdx.x];
}

__global__ void unwritten_shared_memory(float* out, const float* in, int planted) {
  __shared__ float tile[kThreads];
  if (!planted || threadIdx.x != 5) tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

__global__ void misaligned_global_vector(float* out, const float* in, int planted) {
  if (threadIdx.x >= kThreads / 4 - planted) return;
  const float4 v = *reinterpret_cast<const float4*>(in + planted + 4 * threadIdx.x);
  float* last = out + kThreads - 1 - 4 * threadIdx.x;
  last[0] = v.x;
  last[-1] = v.y;
  last[-2] = v.z;
  last[-3] = v.w;
}

__global__ void misaligned_shared_vector(float* out, const float* in, int planted) {
  __shared__ float4 tile[kThreads / 4 + 1];
  float* scalars = reinterpret_cast<float*>(tile);
  scalars[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x >= kThreads / 4) return;
  const float4 v = *reinterpret_cast<const float4*>(scalars + planted + 4 * threadIdx.x);
  float* last = out + kThreads - 1 - 4 * threadIdx.x;
  last[0] = v.x;
  last[-1] = v.y;
  last[-2] = v.z;
  last[-3] = v.w;
}

__global__ void dynamic_shared_memory(float* out, const float* in) {
  extern __shared__ float dynamic_tile[];
  dynamic_tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = dynamic_tile[kThreads - 1 - threadIdx.x];
}

__global__ void shuffle_without_some_lanes(float* out, const float* in, int planted) {
  const unsigned mask = planted ? 0x0000ffffu : 0xffffffffu;
  const float reversed = __shfl_xor_sync(mask, in[threadIdx.x], 31);
  out[kThreads - 32 - threadIdx.x / 32 * 32 + threadIdx.x % 32] = reversed;
}

__global__ void shuffle_with_absent_lanes(float* out, const float* in, int planted) {
  const float value = in[threadIdx.x];
  if (planted && threadIdx.x % 32 == 31) return;
  const float reversed = __shfl_xor_sync(0xffffffffu, value, 31);
  out[kThreads - 32 - threadIdx.x / 32 * 32 + threadIdx.x % 32] = reversed;
}

}  // extern "C"
