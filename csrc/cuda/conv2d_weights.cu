// The weight gradient as an implicit matrix product in float32: dw[(tap, c), f] = sum over pixels
// of x[pixel + tap, c] * dy[pixel, f].
//
// Rows of the product are taps and channels, columns are filters, and the sum runs over the pixels
// of all images, 16 a step. It is cut into splits, whose number depends on the shape only; each
// writes its sums, and a second kernel (sum_partials) adds them up in order: no atomics, the same
// bits on every device.
//
// A block of 96 threads makes a tile of 96 rows, which divides the 9 * 32 k rows of a 3x3 kernel,
// and N = 64 or 32 columns; a thread 8 rows and N / 8 columns. Both operands lie in memory as the
// product wants them, [pixel][channel] and [pixel][filter]. The bias gradient is the sum of dy:
// threads add up what they load of it anyway.
#include <type_traits>

#include "async_copy.cuh"
#include "conv2d.cuh"

namespace pyconv::cuda {

namespace {

using namespace weights_tiles;

template <int N>
constexpr size_t shared_bytes = 2 * sizeof(float) * (tile_rows + N) * depth;

template <int N, class Source>
__global__ void __launch_bounds__(threads, resident_blocks(4, shared_bytes<N>))
    weights_kernel(Taps t, Source dy, Positions pixels, unsigned split_pixels,
                   const float* __restrict__ x, float* __restrict__ partial) {
  constexpr int columns = N / 8;
  constexpr int x_loads = depth / x_step, dy_loads = ceil_div(depth, dy_step<N>);
  __shared__ __align__(16) float x_tile[2][depth * tile_rows];
  __shared__ __align__(16) float dy_tile[2][depth * N];

  const int thread = threadIdx.x;
  const int rows = t.kh * t.kw * t.c;

  // What this thread loads of x: four channels of one tap, of some pixels.
  const Loader of_x = x_loader(thread);
  const int first_row = blockIdx.x * tile_rows + of_x.unit * 4;
  const bool has_row = first_row < rows;
  const int tap = first_row / t.c;
  const int down = tap / t.kw * t.dilation_h - t.pad_top;
  const int right = tap % t.kw * t.dilation_w - t.pad_left;
  const float* const channel = x + first_row % t.c;
  // And of dy: four filters of some pixels.
  const Loader of_dy = dy_loader<N>(thread);
  const int filter = blockIdx.y * N + of_dy.unit * 4;
  const bool has_filter = filter < t.oc;

  unsigned first = blockIdx.z * split_pixels;  // pixel of the step being loaded
  const unsigned end = min(first + split_pixels, pixels.count);
  float4 x_staged[x_loads], bias = zeros();
  typename Source::Raw dy_staged[dy_loads];
  const auto load = [&](int stage) {
#pragma unroll
    for (int i = 0; i < x_loads; ++i) {
      const int step_pixel = of_x.row + i * x_step;
      const unsigned pixel = first + step_pixel;
      int n, oh, ow;
      pixels.locate(pixel, n, oh, ow);
      const int ih = oh * t.stride_h + down, iw = ow * t.stride_w + right;
      const bool valid = has_row && pixel < end &&
                         static_cast<unsigned>(ih) < static_cast<unsigned>(t.h) &&
                         static_cast<unsigned>(iw) < static_cast<unsigned>(t.w);
      const float* const from = channel + ((n * t.h + ih) * t.w + iw) * t.c;
      if constexpr (PYCONV_SM80) {
        copy_16_bytes_async(&x_tile[stage][x_at(step_pixel, of_x.unit * 4)], from, valid);
      } else {
        x_staged[i] = load_early_or_zeros(from, valid);
      }
    }
#pragma unroll
    for (int i = 0; i < dy_loads; ++i) {
      const int step_pixel = of_dy.row + i * dy_step<N>;
      const unsigned pixel = first + step_pixel;
      const bool valid = has_filter && pixel < end && step_pixel < depth;
      if constexpr (std::is_same_v<Source, Pooled>) {
        int n, oh, ow;
        pixels.locate(pixel, n, oh, ow);
        dy_staged[i] = dy.read(n, oh, ow, filter, valid);
      } else {  // lies there pixel by pixel
        dy_staged[i] = dy.read(pixel * t.oc + filter, valid);
      }
    }
    first += depth;
  };
  const auto store_staged = [&](int stage) {
    if constexpr (!PYCONV_SM80) {
#pragma unroll
      for (int i = 0; i < x_loads; ++i) {
        *reinterpret_cast<float4*>(&x_tile[stage][x_at(of_x.row + i * x_step, of_x.unit * 4)]) =
            x_staged[i];
      }
    }
#pragma unroll
    for (int i = 0; i < dy_loads; ++i) {
      const float4 g = dy.value(dy_staged[i]);
      bias = make_float4(bias.x + g.x, bias.y + g.y, bias.z + g.z, bias.w + g.w);
      const int step_pixel = of_dy.row + i * dy_step<N>;
      if (step_pixel < depth) {
        *reinterpret_cast<float4*>(&dy_tile[stage][dy_at<N>(step_pixel, of_dy.unit * 4)]) = g;
      }
    }
  };

  const Place place = place_of(thread);
  float sums[8][columns] = {};
  const auto multiply = [&](int stage) {
#pragma unroll
    for (int k = 0; k < depth; ++k) {
      float a[8], b[columns];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        *reinterpret_cast<float4*>(&a[part * 4]) = *reinterpret_cast<const float4*>(
            &x_tile[stage][x_at(k, place.row * 4 + part * part_rows)]);
      }
#pragma unroll
      for (int part = 0; part < columns / 4; ++part) {
        *reinterpret_cast<float4*>(&b[part * 4]) = *reinterpret_cast<const float4*>(
            &dy_tile[stage][dy_at<N>(k, place.column * 4 + part * part_columns)]);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < columns; ++j) sums[i][j] += a[i] * b[j];
      }
    }
  };

  const int steps = static_cast<int>(ceil_div(end - first, static_cast<unsigned>(depth)));  // > 0
  load(0);
  store_staged(0);
  int loading = 1;  // stage
  for (int left = steps - 1; left >= 0; --left, loading ^= 1) {
    const bool more = left > 0;
    wait_for_copies();
    __syncthreads();  // the other stage has arrived, and everybody has finished with this one
    if (more) load(loading);
    __syncwarp();  // or the compiler moves the multiplications in front of the loads
    multiply(loading ^ 1);
    if (more) store_staged(loading);
  }

  float* const result = partial + static_cast<int64_t>(blockIdx.z) * (rows + 1) * t.oc;
#pragma unroll
  for (int part = 0; part < columns / 4; ++part) {
    const int f = blockIdx.y * N + place.column * 4 + part * part_columns;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = blockIdx.x * tile_rows + place.row * 4 + i / 4 * part_rows + i % 4;
      if (f < t.oc && row < rows) {
        *reinterpret_cast<float4*>(result + static_cast<int64_t>(row) * t.oc + f) = make_float4(
            sums[i][part * 4], sums[i][part * 4 + 1], sums[i][part * 4 + 2], sums[i][part * 4 + 3]);
      }
    }
  }
  if (blockIdx.x != 0) return;
  // The bias: the threads that loaded the same filters, in order.
  __syncthreads();
  float* const shared = dy_tile[0];
  *reinterpret_cast<float4*>(&shared[thread * 4]) = bias;
  __syncthreads();
  if (thread < N && blockIdx.y * N + thread < t.oc) {
    float sum = 0.0f;
    for (int i = 0; i < dy_step<N>; ++i) sum += shared[i * N + thread];
    result[static_cast<int64_t>(rows) * t.oc + blockIdx.y * N + thread] = sum;
  }
}

template <int N, class Source>
const KernelOf weights{"conv2d_weights", weights_kernel<N, Source>, threads,
                       std::string(Source::name) + " x" + std::to_string(N)};

template <int N, class Source>
void run(const Conv2dShape& s, const Source& dy, const float* x, float* dw, float* db) {
  const int64_t rows = s.kh * s.kw * s.c;
  const auto row_blocks = static_cast<unsigned>(ceil_div<int64_t>(rows, tile_rows));
  const auto column_blocks = static_cast<unsigned>(ceil_div<int64_t>(s.oc, N));
  const Positions pixels(s.n, s.oh, s.ow);
  // Whole steps, and no split without pixels.
  const int64_t wanted = weight_splits(s, row_blocks * column_blocks);
  const int64_t split_pixels =
      ceil_div<int64_t>(ceil_div<int64_t>(pixels.count, wanted), depth) * depth;
  const int64_t splits = ceil_div<int64_t>(pixels.count, split_pixels);
  const Workspace partial(sizeof(float) * splits * (rows + 1) * s.oc);
  weights<N, Source>(dim3(row_blocks, column_blocks, static_cast<unsigned>(splits)),
                     forward_taps(s), dy, pixels, static_cast<unsigned>(split_pixels), x,
                     partial.at<float>());
  sum_partials(s, splits, partial.at<float>(), dw, db);
}

}  // namespace

template <class Source>
void conv2d_gemm_backward_weights(const Conv2dShape& s, const Source& dy, const float* x, float* dw,
                                  float* db) {
  if (s.oc > 32) {
    run<64>(s, dy, x, dw, db);
  } else {
    run<32>(s, dy, x, dw, db);
  }
}
template void conv2d_gemm_backward_weights(const Conv2dShape&, const Plain&, const float*, float*,
                                           float*);
template void conv2d_gemm_backward_weights(const Conv2dShape&, const Masked&, const float*, float*,
                                           float*);
template void conv2d_gemm_backward_weights(const Conv2dShape&, const Pooled&, const float*, float*,
                                           float*);

}  // namespace pyconv::cuda
