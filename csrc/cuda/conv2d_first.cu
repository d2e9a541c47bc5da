// The first layer of a network on pictures: 3x3 kernels on 3 channels, strides of 1. Three channels
// fill no 16-byte access and 27 products make no tile, so these kernels put the picture into shared
// memory as it is and give each thread a run of pixels in a row and four filters: the pixels of a
// row are read once for the three taps that see them. Both are bound by memory, not arithmetic.
//
// A block covers 8 rows of 32 output pixels and 32 filters.
#include "conv2d.cuh"

namespace pyconv::cuda {

namespace {

using namespace first_tiles;

// Which tile of the batch a number means.
struct Tiles {
  int rows, columns;  // of an image

  __device__ __forceinline__ void locate(unsigned index, int& n, int& top, int& left) const {
    left = static_cast<int>(index % columns) * tile_columns;
    top = static_cast<int>(index / columns % rows) * tile_rows;
    n = static_cast<int>(index / columns / rows);
  }
};

// The patch of x that the tile at (top, left) of the output reads; zero outside the image.
__device__ __forceinline__ void load_patch(const Taps& t, const float* x, int n, int top, int left,
                                           float* patch) {
  const int first_row = top - t.pad_top, first_float = (left - t.pad_left) * channels;
  for (int i = threadIdx.x; i < patch_rows * patch_pitch; i += blockDim.x) {
    const int row = first_row + i / patch_pitch, at = first_float + i % patch_pitch;
    const bool inside =
        row >= 0 && row < t.h && at >= 0 && at < t.w * channels && i % patch_pitch < patch_floats;
    patch[i] = inside ? x[(static_cast<int64_t>(n) * t.h + row) * t.w * channels + at] : 0.0f;
  }
}

__global__ void __launch_bounds__(forward_threads)
    first_kernel(Taps t, Tiles tiles, const float* __restrict__ x, const float* __restrict__ w,
                 Output out) {
  __shared__ __align__(16) float patch[patch_rows * patch_pitch];
  __shared__ __align__(16) float weights[taps * tile_filters];
  int n, top, left;
  tiles.locate(blockIdx.x, n, top, left);
  load_patch(t, x, n, top, left, patch);
  const int first_filter = blockIdx.y * tile_filters;
  for (int i = threadIdx.x; i < taps * tile_filters; i += forward_threads) {
    const int f = first_filter + i % tile_filters;
    weights[i] = f < t.oc ? w[i / tile_filters * t.oc + f] : 0.0f;
  }
  __syncthreads();

  const auto [row, column, quad] = run_of(threadIdx.x);
  float4 sums[run];
#pragma unroll
  for (int i = 0; i < run; ++i) sums[i] = zeros();
#pragma unroll
  for (int r = 0; r < kernel; ++r) {
    float line[(run + 2) * channels + 2];  // whole 16 bytes
#pragma unroll
    for (int i = 0; i < (run + 2) * channels; i += 4) {
      *reinterpret_cast<float4*>(&line[i]) =
          *reinterpret_cast<const float4*>(&patch[patch_at(row + r, column) + i]);
    }
#pragma unroll
    for (int k = 0; k < pairs; ++k) {
      const float4 f = *reinterpret_cast<const float4*>(&weights[weight_at(r * pairs + k, quad)]);
#pragma unroll
      for (int i = 0; i < run; ++i) {
        const float value = line[i * channels + k];
        sums[i].x += value * f.x;
        sums[i].y += value * f.y;
        sums[i].z += value * f.z;
        sums[i].w += value * f.w;
      }
    }
  }

  const int f = first_filter + quad, oh = top + row;
  if (f >= t.oc || oh >= t.oh) return;
  float4 bias = zeros();
  if (out.bias != nullptr)
    bias = make_float4(out.bias[f], out.bias[f + 1], out.bias[f + 2], out.bias[f + 3]);
#pragma unroll
  for (int i = 0; i < run; ++i) {
    const int ow = left + column + i;
    if (ow >= t.ow) return;
    float4 y =
        make_float4(sums[i].x + bias.x, sums[i].y + bias.y, sums[i].z + bias.z, sums[i].w + bias.w);
    if (out.relu) y = make_float4(relu_of(y.x), relu_of(y.y), relu_of(y.z), relu_of(y.w));
    *reinterpret_cast<float4*>(out.y + ((static_cast<int64_t>(n) * t.oh + oh) * t.ow + ow) * t.oc +
                               f) = y;
  }
}

// ---------------------------------------------------------------------------------------------

// A thread sums one row of the kernel, 9 (column, channel) pairs, and four filters over one row of
// every tile of its split; the 8 rows are added up in order at the end.
constexpr int gradient_floats = tile_rows * tile_columns * tile_filters;
constexpr size_t weight_shared_bytes = sizeof(float) * (patch_rows * patch_pitch + gradient_floats);

template <class Source>
__global__ void __launch_bounds__(weight_threads, resident_blocks(3, weight_shared_bytes))
    first_weights_kernel(Taps t, Tiles tiles, unsigned tile_count, Source dy,
                         const float* __restrict__ x, float* __restrict__ partial) {
  __shared__ __align__(16) float patch[patch_rows * patch_pitch];
  __shared__ __align__(16) float gradient[gradient_floats];

  const auto [r, row, quad] = sum_of(threadIdx.x);
  const int first_filter = blockIdx.y * tile_filters;
  float4 sums[pairs + 1];  // the last one: the bias
#pragma unroll
  for (int k = 0; k <= pairs; ++k) sums[k] = zeros();

  for (unsigned tile = blockIdx.x; tile < tile_count; tile += gridDim.x) {
    int n, top, left;
    tiles.locate(tile, n, top, left);
    __syncthreads();  // everybody has finished with the last tile
    load_patch(t, x, n, top, left, patch);
    for (int i = threadIdx.x; i < gradient_floats / 4; i += weight_threads) {
      const int f = first_filter + i % quads * 4;
      const int oh = top + i / quads / tile_columns, ow = left + i / quads % tile_columns;
      *reinterpret_cast<float4*>(&gradient[i * 4]) =
          four(dy, n, oh, ow, f, f < t.oc && oh < t.oh && ow < t.ow);
    }
    __syncthreads();

    const float* const line = &patch[patch_at(row + r, 0)];
    const float* const g = &gradient[gradient_at(row, 0, quad)];
    for (int column = 0; column < tile_columns; column += 4) {
      float values[4 * channels + 8];  // of 4 pixels and the 2 behind them; whole 16 bytes
#pragma unroll
      for (int i = 0; i < 6 * channels; i += 4) {
        *reinterpret_cast<float4*>(&values[i]) =
            *reinterpret_cast<const float4*>(&line[patch_at(0, column) + i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 d = *reinterpret_cast<const float4*>(&g[gradient_at(0, column + i, 0)]);
#pragma unroll
        for (int k = 0; k < pairs; ++k) {
          const float value = values[i * channels + k];
          sums[k].x += value * d.x;
          sums[k].y += value * d.y;
          sums[k].z += value * d.z;
          sums[k].w += value * d.w;
        }
        sums[pairs] = make_float4(sums[pairs].x + d.x, sums[pairs].y + d.y, sums[pairs].z + d.z,
                                  sums[pairs].w + d.w);
      }
    }
  }

  // Row by row, each thread's sums next to one another: [r][row][k][filter].
  __syncthreads();
  float* const all = gradient;
#pragma unroll
  for (int k = 0; k <= pairs; ++k) {
    *reinterpret_cast<float4*>(&all[sum_at(r, row, k, quad)]) = sums[k];
  }
  __syncthreads();
  float* const result = partial + static_cast<int64_t>(blockIdx.x) * (taps + 1) * t.oc;
  for (int i = threadIdx.x; i < (taps + 1) * tile_filters; i += weight_threads) {
    const int f = i % tile_filters, k = i / tile_filters;
    if (first_filter + f >= t.oc) continue;
    // The bias stands behind the taps; any kernel row has it.
    const int kernel_row = k < taps ? k / pairs : 0, pair = k < taps ? k % pairs : pairs;
    float sum = 0.0f;
    for (int j = 0; j < tile_rows; ++j) {
      sum += all[sum_at(kernel_row, j, pair, f)];
    }
    result[static_cast<int64_t>(k) * t.oc + first_filter + f] = sum;
  }
}

const KernelOf forward{"conv2d_first", first_kernel, forward_threads};
template <class Source>
const KernelOf weights{"conv2d_first_weights", first_weights_kernel<Source>, weight_threads,
                       Source::name};

Tiles tiles_of(const Conv2dShape& s) {
  return {static_cast<int>(ceil_div<int64_t>(s.oh, tile_rows)),
          static_cast<int>(ceil_div<int64_t>(s.ow, tile_columns))};
}
unsigned filter_blocks(const Conv2dShape& s) {
  return static_cast<unsigned>(ceil_div<int64_t>(s.oc, tile_filters));
}

}  // namespace

void conv2d_first(const Conv2dShape& s, const float* x, const float* w, const Output& output) {
  const Tiles tiles = tiles_of(s);
  const auto count = static_cast<unsigned>(s.n * tiles.rows * tiles.columns);
  forward(dim3(count, filter_blocks(s)), forward_taps(s), tiles, x, w, output);
}

template <class Source>
void conv2d_first_backward_weights(const Conv2dShape& s, const Source& dy, const float* x,
                                   float* dw, float* db) {
  const Tiles tiles = tiles_of(s);
  const int64_t count = s.n * tiles.rows * tiles.columns;
  const int64_t wanted = weight_splits(s, filter_blocks(s));
  const int64_t splits = wanted < count ? wanted : count;
  const Workspace partial(sizeof(float) * splits * (taps + 1) * s.oc);
  weights<Source>(dim3(static_cast<unsigned>(splits), filter_blocks(s)), forward_taps(s), tiles,
                  static_cast<unsigned>(count), dy, x, partial.at<float>());
  sum_partials(s, splits, partial.at<float>(), dw, db);
}
template void conv2d_first_backward_weights(const Conv2dShape&, const Plain&, const float*, float*,
                                            float*);
template void conv2d_first_backward_weights(const Conv2dShape&, const Masked&, const float*, float*,
                                            float*);
template void conv2d_first_backward_weights(const Conv2dShape&, const Pooled&, const float*, float*,
                                            float*);

}  // namespace pyconv::cuda
