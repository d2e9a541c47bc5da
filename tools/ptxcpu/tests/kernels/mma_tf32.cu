// D(16x8)=A(16x8,row)*B(8x8,col stored as row-major K x N
// here)+C, tf32 operands rounded with cvt.rna
__device__ unsigned tf32(float x) {
  unsigned r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}
extern "C" __global__ void mma_tf32(const float* A, const float* B, const float* C, float* D) {
  int l = threadIdx.x & 31, g = l >> 2, t = l & 3;
  unsigned a0 = tf32(A[g * 8 + t]), a1 = tf32(A[(g + 8) * 8 + t]), a2 = tf32(A[g * 8 + t + 4]),
           a3 = tf32(A[(g + 8) * 8 + t + 4]);
  unsigned b0 = tf32(B[t * 8 + g]), b1 = tf32(B[(t + 4) * 8 + g]);
  float c0 = C[g * 8 + 2 * t], c1 = C[g * 8 + 2 * t + 1], c2 = C[(g + 8) * 8 + 2 * t],
        c3 = C[(g + 8) * 8 + 2 * t + 1], d0, d1, d2, d3;
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=f"(d0), "=f"(d1), "=f"(d2), "=f"(d3)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
  D[g * 8 + 2 * t] = d0;
  D[g * 8 + 2 * t + 1] = d1;
  D[(g + 8) * 8 + 2 * t] = d2;
  D[(g + 8) * 8 + 2 * t + 1] = d3;
}
