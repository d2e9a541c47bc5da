#include "launchers.hpp"

namespace {

__constant__ float output_scale;

constexpr int kThreads = 256;

/// One block transposes a Tile x Tile square through shared
/// memory; the padding avoids bank conflicts.
template <int Tile, Bug Planted>
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const float* __restrict__ in, float* __restrict__ out, int rows, int columns) {
  extern __shared__ float tile[];
  constexpr int pitch = Tile + 1;
  const int first_row = blockIdx.y * Tile;
  const int first_column = blockIdx.x * Tile;
  for (int i = threadIdx.x; i < Tile * Tile; i += kThreads) {
    const int row = first_row + i / Tile;
    const int column = first_column + i % Tile;
    const bool inside = (row < rows && column < columns) || Planted == Bug::kOutOfBounds;
    tile[i / Tile * pitch + i % Tile] = inside ? in[row * columns + column] : 0.f;
  }
  if (Planted != Bug::kMissingBarrier) __syncthreads();
  for (int i = threadIdx.x; i < Tile * Tile; i += kThreads) {
    const int row = first_row + i % Tile;
    const int column = first_column + i / Tile;
    if (row < rows && column < columns) {
      out[column * rows + row] = output_scale * tile[i % Tile * pitch + i / Tile];
    }
  }
}

template <int Tile, Bug Planted>
cudaError_t launch(const float* in, float* out, int rows, int columns, bool raise_limit,
                   cudaStream_t stream) {
  const auto kernel = transpose_kernel<Tile, Planted>;
  const size_t shared_bytes = Tile * (Tile + 1) * sizeof(float);
  if (raise_limit) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  const dim3 grid((columns + Tile - 1) / Tile, (rows + Tile - 1) / Tile);
  kernel<<<grid, kThreads, shared_bytes, stream>>>(in, out, rows, columns);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_transpose(const float* in, float* out, int rows, int columns, float scale,
                             bool raise_limit, Bug bug, cudaStream_t stream) {
  constexpr int tile = 128;
  const cudaError_t error = cudaMemcpyToSymbolAsync(output_scale, &scale, sizeof scale, 0,
                                                    cudaMemcpyHostToDevice, stream);
  if (error != cudaSuccess) return error;
  switch (bug) {
    case Bug::kMissingBarrier:
      return launch<tile, Bug::kMissingBarrier>(in, out, rows, columns, raise_limit, stream);
    case Bug::kOutOfBounds:
      return launch<tile, Bug::kOutOfBounds>(in, out, rows, columns, raise_limit, stream);
    case Bug::kNeverRaised:
      return launch<tile, Bug::kNeverRaised>(in, out, rows, columns, raise_limit, stream);
    default:
      return launch<tile, Bug::kNone>(in, out, rows, columns, raise_limit, stream);
  }
}
