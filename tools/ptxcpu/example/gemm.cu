#include <cstdint>

#include "launchers.hpp"

namespace {

constexpr int kTileM = 64;
constexpr int kTileN = 64;
constexpr int kTileK = 16;
constexpr int kPitchA = 20;  // in floats; multiples of 4 keep 16-byte copies aligned
constexpr int kPitchB = 72;
constexpr int kThreads = 128;  // four warps, each computes 32 x 32 of the tile

__device__ __forceinline__ void copy_16_bytes(float* shared, const float* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global));
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }

template <int Groups>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups));
}

__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

struct Tiles {
  float a[2][kTileM][kPitchA];
  float b[2][kTileK][kPitchB];
};

__device__ __forceinline__ void load_tiles(Tiles& tiles, int stage, const float* a, const float* b,
                                           int n, int k, int first_k) {
  for (int i = threadIdx.x; i < kTileM * kTileK / 4; i += kThreads) {
    const int row = i / (kTileK / 4);
    const int column = i % (kTileK / 4) * 4;
    copy_16_bytes(&tiles.a[stage][row][column], a + row * k + first_k + column);
  }
  for (int i = threadIdx.x; i < kTileK * kTileN / 4; i += kThreads) {
    const int row = i / (kTileN / 4);
    const int column = i % (kTileN / 4) * 4;
    copy_16_bytes(&tiles.b[stage][row][column], b + (first_k + row) * n + column);
  }
  commit_copies();
}

/// Two stages: while one tile is multiplied, the copies of the next are under way.
template <Bug Planted>
__global__ void __launch_bounds__(kThreads)
    gemm_kernel(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ c,
                int n, int k) {
  __shared__ __align__(16) Tiles tiles;
  const int lane = threadIdx.x % 32;
  const int group = lane / 4;
  const int quad = lane % 4;
  const int warp_row = threadIdx.x / 64 * 32;
  const int warp_column = threadIdx.x / 32 % 2 * 32;
  a += blockIdx.y * kTileM * k;
  b += blockIdx.x * kTileN;
  c += blockIdx.y * kTileM * n + blockIdx.x * kTileN;
  float sums[2][4][4] = {};
  load_tiles(tiles, 0, a, b, n, k, 0);
  int stage = 0;
  for (int first_k = 0; first_k < k; first_k += kTileK) {
    const bool has_next = first_k + kTileK < k;
    if (has_next) load_tiles(tiles, stage ^ 1, a, b, n, k, first_k + kTileK);
    if (has_next && Planted == Bug::kMissingWait) {
      wait_for_copies<2>();  // lets the tile that is needed now still be under way
    } else if (has_next) {
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    for (int kk = 0; kk < kTileK; kk += 8) {
      uint32_t a_fragment[2][4];
      uint32_t b_fragment[4][2];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int row = warp_row + i * 16 + group;
#pragma unroll
        for (int r = 0; r < 4; r++) {
          a_fragment[i][r] = to_tf32(tiles.a[stage][row + r % 2 * 8][kk + quad + r / 2 * 4]);
        }
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int column = warp_column + j * 8 + group;
        b_fragment[j][0] = to_tf32(tiles.b[stage][kk + quad][column]);
        b_fragment[j][1] = to_tf32(tiles.b[stage][kk + quad + 4][column]);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) multiply_add(sums[i][j], a_fragment[i], b_fragment[j]);
      }
    }
    if (Planted != Bug::kMissingBarrier) __syncthreads();
    stage ^= 1;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int row = warp_row + i * 16 + group;
      const int column = warp_column + j * 8 + quad * 2;
      c[row * n + column] = sums[i][j][0];
      c[row * n + column + 1] = sums[i][j][1];
      c[(row + 8) * n + column] = sums[i][j][2];
      c[(row + 8) * n + column + 1] = sums[i][j][3];
    }
  }
}

template <Bug Planted>
cudaError_t launch(const float* a, const float* b, float* c, int m, int n, int k,
                   cudaStream_t stream) {
  gemm_kernel<Planted><<<dim3(n / kTileN, m / kTileM), kThreads, 0, stream>>>(a, b, c, n, k);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_gemm(const float* a, const float* b, float* c, int m, int n, int k, Bug bug,
                        cudaStream_t stream) {
  switch (bug) {
    case Bug::kMissingBarrier:
      return launch<Bug::kMissingBarrier>(a, b, c, m, n, k, stream);
    case Bug::kMissingWait:
      return launch<Bug::kMissingWait>(a, b, c, m, n, k, stream);
    default:
      return launch<Bug::kNone>(a, b, c, m, n, k, stream);
  }
}
