// A matrix product with everything in it that test_cuda_code.py looks for: sums in memory, because
// they are indexed at run time; shared memory read value by value, and 16 bytes for one
// multiplication; an atomic and a division in the loop; a load that is used at once.
extern "C" __global__ void bad_gemm(const float* a, const float* b, float* c, int k, int pick) {
  __shared__ __align__(16) float tile[32 * 32];
  float sums[8] = {};
  for (int step = 0; step < k; ++step) {
    tile[threadIdx.x] = a[step * 32 + threadIdx.x] / b[step];
    __syncthreads();
    for (int i = 0; i < 32; ++i) sums[(i + pick) % 8] += tile[i] * tile[(i * 7 + pick) % 32];
    const float4 wide = *reinterpret_cast<const float4*>(&tile[pick * 4]);
    sums[pick] += wide.x * wide.y + wide.z * wide.w;
    atomicAdd(c, sums[pick]);
    __syncthreads();
  }
  for (int i = 0; i < 8; ++i) c[i * 32 + threadIdx.x] = sums[i];
}
