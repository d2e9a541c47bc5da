extern "C" __global__ void cpasync(const float* a, float* o, int n) {
  extern __shared__ __align__(16) float sm[];
  int t = threadIdx.x, base = blockIdx.x * blockDim.x * 4;
  unsigned s = (unsigned)__cvta_generic_to_shared(sm + t * 4);
  int rem = n - (base + t * 4);
  int bytes = rem >= 4 ? 16 : (rem > 0 ? rem * 4 : 0);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s), "l"(a + base + t * 4),
               "r"(bytes));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;");
  __syncthreads();
  for (int j = t; j < (int)blockDim.x * 4; j += blockDim.x) {
    int r = blockDim.x * 4 - 1 - j;
    if (base + j < n) o[base + j] = sm[r];
  }
}
