#include <cstring>

#include "alu_operations.h"
extern "C" __global__ void k(const u* a, const u* b, const u* c, const float* x, const float* y,
                             const float* z, const double* p, const double* q, ull* o, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) alu(a[i], b[i], c[i], x[i], y[i], z[i], p[i], q[i], o + (size_t)i * NF);
}
#include <cuda_bf16.h>
#include <cuda_fp16.h>
__device__ ull fb2(float x) { return fb(x); }
extern "C" __global__ void intr(const u* a, const u* b, const u* c, const float* x, const float* y,
                                const float* z, u* o, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  u* r = o + (size_t)i * 40;
  int k = 0;
  u A = a[i], B = b[i], C = c[i];
  float X = x[i], Y = y[i], Z = z[i];
  r[k++] = __popc(A);
  r[k++] = __clz(A);
  r[k++] = __ffs(A);
  r[k++] = __brev(A);
  r[k++] = __byte_perm(A, B, C & 0x7777);
  r[k++] = __funnelshift_l(A, B, C);
  r[k++] = __funnelshift_r(A, B, C);
  r[k++] = __umulhi(A, B);
  r[k++] = __mulhi((int)A, (int)B);
  r[k++] = __float2int_rd(X);
  r[k++] = __float2int_ru(X);
  r[k++] = __float2int_rn(X);
  r[k++] = __float2int_rz(X);
  r[k++] = __float2uint_rz(X);
  r[k++] = __float_as_uint(__fadd_rd(X, Y));
  r[k++] = __float_as_uint(__fmul_ru(X, Y));
  r[k++] = __float_as_uint(__fmaf_rz(X, Y, Z));
  r[k++] = __float_as_uint(__saturatef(X));
  r[k++] = __half_as_ushort(__float2half_rn(X));
  r[k++] = __float_as_uint(__half2float(__ushort_as_half((unsigned short)A)));
  r[k++] = __bfloat16_as_ushort(__float2bfloat16_rn(X));
  r[k++] = __dp4a((int)A, (int)B, (int)C);
  r[k++] = __float_as_uint(fminf(X, Y));
  r[k++] = __float_as_uint(fmaxf(X, Y));
  r[k++] = __float_as_uint(expf(Z));
  r[k++] = __float_as_uint(logf(fabsf(X)));
  r[k++] = __float_as_uint(sinf(X));
  r[k++] = __float_as_uint(tanhf(Z));
  r[k++] = __float_as_uint(powf(fabsf(Z), Y > 0 ? 1.5f : -0.7f));
  r[k++] = __float_as_uint(__expf(Z));
  r[k++] = __float_as_uint(rsqrtf(fabsf(Z)));
  r[k++] = __float_as_uint(erff(Z));
  r[k++] = __usad(A, B, C);
  r[k++] = __popcll(((ull)A << 32) | B);
  r[k++] = __clzll(((ull)A << 32) | B);
}
extern "C" __global__ void warp(const u* a, u* o) {
  int l = threadIdx.x;
  u v = a[l], *r = o + l * 16;
  int k = 0;
  u F = ~0u;
  r[k++] = __shfl_sync(F, v, l * 7 + 3);
  r[k++] = __shfl_up_sync(F, v, 3);
  r[k++] = __shfl_down_sync(F, v, 5);
  r[k++] = __shfl_xor_sync(F, v, 9);
  r[k++] = __shfl_sync(F, v, 5, 8);
  r[k++] = __shfl_up_sync(F, v, 2, 8);
  r[k++] = __shfl_down_sync(F, v, 2, 8);
  r[k++] = __shfl_xor_sync(F, v, 1, 4);
  r[k++] = __ballot_sync(F, v & 1);
  r[k++] = __any_sync(F, v == a[3]);
  r[k++] = __all_sync(F, v != 0);
  r[k++] = __match_any_sync(F, v & 3);
#if __CUDA_ARCH__ >= 800
  r[k++] = __reduce_add_sync(F, v);
  r[k++] = __reduce_max_sync(F, v);
#endif

  if (l < 16)
    r[k++] = __shfl_xor_sync(0xffffu, v, 1);
  else
    r[k++] = __ballot_sync(0xffff0000u, v & 2);
  r[k++] =
      __syncthreads_count(v & 1) + 100 * __syncthreads_or(l == 3) + 1000 * __syncthreads_and(1);
}
