// double-buffered cp.async + ldmatrix-free tf32 mma GEMM: 64x64 tile, 128 threads, K step 16.
// C=A(MxK row)*B(KxN row); dims multiple of tile
#define BM 64
#define BN 64
#define BK 16
#define PA 20
#define PB 72
__device__ __forceinline__ void cp16(void* s, const void* g) {
  unsigned a = (unsigned)__cvta_generic_to_shared(s);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(a), "l"(g));
}
__device__ __forceinline__ unsigned tf(float x) {
  unsigned r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}
extern "C" __global__ void __launch_bounds__(128)
    mmagemm(const float* __restrict__ A, const float* __restrict__ B, float* __restrict__ C, int M,
            int N, int K) {
  __shared__ __align__(16) float As[2][BM][PA];
  __shared__ __align__(16) float Bs[2][BK][PB];
  int t = threadIdx.x, w = t >> 5, l = t & 31, g = l >> 2, q = l & 3, wm = (w >> 1) * 32,
      wn = (w & 1) * 32, bm = blockIdx.y * BM, bn = blockIdx.x * BN;
  float acc[2][4][4];
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int r = 0; r < 4; r++) acc[i][j][r] = 0;
  auto load = [&](int buf, int k0) {
    for (int i = t; i < BM * BK / 4; i += 128) {
      int r = i / (BK / 4), c = (i % (BK / 4)) * 4;
      cp16(&As[buf][r][c], A + (size_t)(bm + r) * K + k0 + c);
    }
    for (int i = t; i < BK * BN / 4; i += 128) {
      int r = i / (BN / 4), c = (i % (BN / 4)) * 4;
      cp16(&Bs[buf][r][c], B + (size_t)(k0 + r) * N + bn + c);
    }
    asm volatile("cp.async.commit_group;");
  };
  load(0, 0);
  int buf = 0;
  for (int k0 = 0; k0 < K; k0 += BK) {
    if (k0 + BK < K) {
      load(buf ^ 1, k0 + BK);
      asm volatile("cp.async.wait_group 1;");
    } else
      asm volatile("cp.async.wait_group 0;");
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < BK; kk += 8) {
      unsigned a[2][4], b[4][2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int r = wm + i * 16 + g;
        a[i][0] = tf(As[buf][r][kk + q]);
        a[i][1] = tf(As[buf][r + 8][kk + q]);
        a[i][2] = tf(As[buf][r][kk + q + 4]);
        a[i][3] = tf(As[buf][r + 8][kk + q + 4]);
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int c = wn + j * 8 + g;
        b[j][0] = tf(Bs[buf][kk + q][c]);
        b[j][1] = tf(Bs[buf][kk + q + 4][c]);
      }
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          asm volatile(
              "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
              "{%8,%9}, {%0,%1,%2,%3};"
              : "+f"(acc[i][j][0]), "+f"(acc[i][j][1]), "+f"(acc[i][j][2]), "+f"(acc[i][j][3])
              : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
    }
    __syncthreads();
    buf ^= 1;
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int r = bm + wm + i * 16 + g, c = bn + wn + j * 8 + 2 * q;
      *(float2*)&C[(size_t)r * N + c] = make_float2(acc[i][j][0], acc[i][j][1]);
      *(float2*)&C[(size_t)(r + 8) * N + c] = make_float2(acc[i][j][2], acc[i][j][3]);
    }
}
