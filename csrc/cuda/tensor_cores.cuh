// Products on tensor cores with factors rounded to TF32: 10 bits of mantissa, to nearest. sm_80 and
// later.
#pragma once

#include "launch.cuh"

namespace pyconv::cuda {

#if PYCONV_SM80
__device__ __forceinline__ float to_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}
// d += a * b, 16 x 8 sums of 8 terms: PTX ISA, "Matrix Fragments for mma.m16n8k8".
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else  // never run: tf32 is refused on these devices
__device__ __forceinline__ float to_tf32(float x) { return x; }
__device__ __forceinline__ void multiply_add(float (&)[4], const unsigned (&)[4], unsigned,
                                             unsigned) {}
#endif

__device__ __forceinline__ float4 to_tf32(const float4& v) {
  return make_float4(to_tf32(v.x), to_tf32(v.y), to_tf32(v.z), to_tf32(v.w));
}

}  // namespace pyconv::cuda
