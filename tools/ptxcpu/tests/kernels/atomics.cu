#include <cstdio>
extern "C" __global__ void at(const unsigned* a, const float* x, unsigned* g, float* gf,
                              unsigned long long* gl, int n) {
  __shared__ unsigned s[8];
  __shared__ float sf;
  if (threadIdx.x < 8) s[threadIdx.x] = threadIdx.x == 1 ? ~0u : 0;
  if (threadIdx.x == 0) sf = 0;
  __syncthreads();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    unsigned v = a[i];
    atomicAdd(&s[0], v);
    atomicMin(&s[1], v);
    atomicMax(&s[2], v);
    atomicXor(&s[3], v);
    atomicOr(&s[4], 1u << (v & 31));
    atomicInc(&s[5], 9);
    atomicAdd(&sf, x[i]);
    atomicAdd(&g[0], v);
    atomicMax((int*)&g[1], (int)v);
    atomicAdd(gl, (unsigned long long)v);
    atomicMax(gl + 1, (unsigned long long)v * v);
    unsigned *p = &g[2], o = *p, as;
    do {
      as = o;
      o = atomicCAS(p, as, as * 3 + v % 5 > 1000000 ? v : as + 1);
    } while (o != as);
    if (v % 97 == 0) atomicExch(&g[3], v);
    float* fp = gf + 1;
    unsigned* up = (unsigned*)fp;
    unsigned c = *up;
    while (x[i] > __uint_as_float(c)) {
      unsigned q = atomicCAS(up, c, __float_as_uint(x[i]));
      if (q == c) break;
      c = q;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    atomicAdd(&g[4], s[0]);
    atomicMin(&g[5], s[1]);
    atomicMax(&g[6], s[2]);
    atomicXor(&g[7], s[3]);
    atomicOr(&g[8], s[4]);
    g[9 + blockIdx.x] = s[5];
    atomicAdd(gf, sf);
  }
}
__constant__ float cw[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
__device__ int counter;
extern "C" __global__ void cst(const float* x, float* y, int n, int sel) {
  int i = threadIdx.x;
  float r = 0;
  switch (sel + (i % 7)) {
    case 0:
      r = x[i] * cw[i % 9];
      break;
    case 1:
      r = x[i] + 3;
      break;
    case 2:
      r = x[i] / 7;
      break;
    case 3:
      r = sqrtf(fabsf(x[i]));
      break;
    case 4:
      r = -x[i];
      break;
    case 5:
      r = x[i] * x[i];
      break;
    case 6: {
      float t[9];
      for (int k = 0; k < 9; k++) t[k] = x[(i + k) % n];
      r = t[i % 9] * 2;
      break;
    }
    default:
      r = 99;
  }
  y[i] = r;
  atomicAdd(&counter, 1);
  if (i == 5) printf("hello %d %f\n", i, r);
}
