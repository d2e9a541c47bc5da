extern "C" __global__ void ldm(const unsigned* in, unsigned* out) {
  __shared__ __align__(16) unsigned sm[4 * 8 * 4];  // 4 8x8 b16 matrices
  int l = threadIdx.x;
  for (int j = l; j < 128; j += 32) sm[j] = in[j];
  __syncthreads();
  unsigned s = (unsigned)__cvta_generic_to_shared(sm + l * 4), r0, r1, r2, r3;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
               : "r"(s));
  out[l] = r0;
  out[32 + l] = r1;
  out[64 + l] = r2;
  out[96 + l] = r3;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r0), "=r"(r1)
               : "r"(s));
  out[128 + l] = r0;
  out[160 + l] = r1;
}
