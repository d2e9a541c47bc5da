// The weight gradient of 3x3 convolutions with strides of 1 on tensor cores, factors rounded to
// TF32, sums in float32. sm_80 and later.
//
//   dw[r, s, c, f] = sum over pixels of x[i + r, j + s, c] * dy[i, j, f]
//
// A block of nine warps makes the gradient of 32 channels and N = 64 or 32 filters, a warp that of
// one tap. It goes over tiles of 8 x 8 pixels: the tile of dy, and a patch of 10 x 10 pixels of x,
// once for all nine taps. The next tile is loaded into registers under the products of this one,
// and rounded on its way into shared memory. The sums of its tiles are one split, whose number
// depends on the shape only; sum_partials adds them up in order.
//
// mma.m16n8k8 has channels as its rows, filters as its columns and the 8 pixels of a row of the
// tile as its terms. Both operands lie [pixel][channel or filter], with rows padded by 8 values:
// the four pixels and eight channels that a warp reads at a time lie in different banks.
#include <type_traits>

#include "conv2d.cuh"
#include "tensor_cores.cuh"

namespace pyconv::cuda {

namespace {

using namespace tf32_weight_tiles;

// Tiles of 8 x 8 pixels, numbered.
struct Tiles {
  int rows, columns;  // in an image

  __device__ __forceinline__ void locate(int tile, int& n, int& top, int& left) const {
    left = tile % columns * side;
    top = tile / columns % rows * side;
    n = tile / columns / rows;
  }
};

// Two blocks share a multiprocessor's registers where theirs suffice.
template <int N, class Source>
constexpr int resident = N == 64 || std::is_same_v<Source, Masked> ? 1 : 2;

template <int N, class Source>
__global__ void __launch_bounds__(threads, (resident<N, Source>))
    tf32_weights_kernel(Taps t, Tiles tiles, int tile_count, Source dy, Plain x,
                        float* __restrict__ partial) {
  constexpr int filter_units = N / 4;
  constexpr int x_loads = ceil_div(patch_pixels * channel_units, threads);
  constexpr int dy_loads = ceil_div(pixels * filter_units, threads);
  __shared__ __align__(16) float patch[patch_pixels * x_pitch];
  __shared__ __align__(16) float gradient[pixels * dy_pitch<N>];

  const int thread = threadIdx.x, lane = thread % warp_size, tap = thread / warp_size;
  const int first_channel = blockIdx.x * channels, first_filter = blockIdx.y * N;
  const int splits = gridDim.z, split = blockIdx.z;
  int tile = static_cast<int>(static_cast<int64_t>(tile_count) * split / splits);
  const int end = static_cast<int>(static_cast<int64_t>(tile_count) * (split + 1) / splits);

  // What this thread loads: four channels, and four filters, of some pixels.
  const int channel = thread % channel_units * 4, filter = thread % filter_units * 4;
  const bool has_channel = first_channel + channel < t.c, has_filter = first_filter + filter < t.oc;
  float4 x_staged[x_loads], bias = zeros();
  typename Source::Raw dy_staged[dy_loads];
  const auto load = [&] {
    int n, top, left;
    tiles.locate(tile, n, top, left);
#pragma unroll
    for (int i = 0; i < x_loads; ++i) {
      const int pixel = thread / channel_units + i * (threads / channel_units);
      const int ih = top - t.pad_top + pixel / patch_side;
      const int iw = left - t.pad_left + pixel % patch_side;
      const bool valid =
          has_channel && pixel < patch_pixels && ih >= 0 && ih < t.h && iw >= 0 && iw < t.w;
      x_staged[i] = x.read(n, ih, iw, first_channel + channel, valid);
    }
#pragma unroll
    for (int i = 0; i < dy_loads; ++i) {
      const int pixel = thread / filter_units + i * (threads / filter_units);
      const int oh = top + pixel / side, ow = left + pixel % side;
      const bool valid = has_filter && pixel < pixels && oh < t.oh && ow < t.ow;
      dy_staged[i] = dy.read(n, oh, ow, first_filter + filter, valid);
    }
  };
  const auto store_staged = [&] {
#pragma unroll
    for (int i = 0; i < x_loads; ++i) {
      const int pixel = thread / channel_units + i * (threads / channel_units);
      if (pixel < patch_pixels)
        *reinterpret_cast<float4*>(&patch[pixel * x_pitch + channel]) = to_tf32(x_staged[i]);
    }
#pragma unroll
    for (int i = 0; i < dy_loads; ++i) {
      const int pixel = thread / filter_units + i * (threads / filter_units);
      const float4 g = dy.value(dy_staged[i]);
      bias = make_float4(bias.x + g.x, bias.y + g.y, bias.z + g.z, bias.w + g.w);
      if (pixel < pixels)
        *reinterpret_cast<float4*>(&gradient[pixel * dy_pitch<N> + filter]) = to_tf32(g);
    }
  };

  // Of each operand a lane holds pixels `term` and `term` + 4 of a row, channels or filters `line`
  // (and 8 further).
  const int term = lane % 4, line = lane / 4;
  const float* const a_from = &patch[(tap / 3 * patch_side + tap % 3 + term) * x_pitch + line];
  const float* const b_from = &gradient[term * dy_pitch<N> + line];
  float sums[channels / 16][N / 8][4] = {};
  const auto multiply = [&] {
#pragma unroll
    for (int row = 0; row < side; ++row) {
      unsigned a[channels / 16][4];
#pragma unroll
      for (int i = 0; i < channels / 16; ++i) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          a[i][part] = __float_as_uint(
              a_from[(row * patch_side + part / 2 * 4) * x_pitch + i * 16 + part % 2 * 8]);
        }
      }
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        const unsigned b0 = __float_as_uint(b_from[row * side * dy_pitch<N> + j * 8]);
        const unsigned b1 = __float_as_uint(b_from[(row * side + 4) * dy_pitch<N> + j * 8]);
#pragma unroll
        for (int i = 0; i < channels / 16; ++i) multiply_add(sums[i][j], a[i], b0, b1);
      }
    }
  };

  load();
  while (true) {
    store_staged();
    __syncthreads();
    const bool more = ++tile < end;
    if (more) load();
    multiply();
    __syncthreads();
    if (!more) break;
  }

  const int rows = taps * t.c;
  float* const result = partial + static_cast<int64_t>(split) * (rows + 1) * t.oc;
#pragma unroll
  for (int i = 0; i < channels / 16; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int c = first_channel + i * 16 + half * 8 + line;
      if (c >= t.c) continue;
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        const int f = first_filter + j * 8 + term * 2;
        if (f >= t.oc) continue;
        *reinterpret_cast<float2*>(result + (static_cast<int64_t>(tap) * t.c + c) * t.oc + f) =
            make_float2(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
      }
    }
  }
  if (blockIdx.x != 0) return;
  // The bias: the threads that loaded the same filters, in order.
  float* const shared = gradient;
  *reinterpret_cast<float4*>(&shared[thread * 4]) = bias;
  __syncthreads();
  if (thread < N && first_filter + thread < t.oc) {
    float sum = 0.0f;
    for (int i = 0; i < threads / filter_units; ++i) sum += shared[i * N + thread];
    result[static_cast<int64_t>(rows) * t.oc + first_filter + thread] = sum;
  }
}

template <int N, class Source>
const KernelOf weights{"conv2d_tf32_weights", tf32_weights_kernel<N, Source>, threads,
                       std::string(Source::name) + " x" + std::to_string(N)};

template <int N, class Source>
void run(const Conv2dShape& s, const Source& dy, const float* x, float* dw, float* db) {
  const Taps t = forward_taps(s);
  const Tiles tiles{ceil_div(t.oh, side), ceil_div(t.ow, side)};
  const int tile_count = static_cast<int>(s.n) * tiles.rows * tiles.columns;
  const int channel_blocks = ceil_div(t.c, channels), filter_blocks = ceil_div(t.oc, N);
  // As many blocks as a large device holds at a time, or a tile each.
  constexpr int wanted_blocks = 132 * resident<N, Source>;
  const int wanted = wanted_blocks / (channel_blocks * filter_blocks);
  const int splits = wanted < 1 ? 1 : wanted < tile_count ? wanted : tile_count;
  const Workspace partial(sizeof(float) * splits * (taps * s.c + 1) * s.oc);
  weights<N, Source>(dim3(static_cast<unsigned>(channel_blocks),
                          static_cast<unsigned>(filter_blocks), static_cast<unsigned>(splits)),
                     t, tiles, tile_count, dy, plain_source(t, x), partial.at<float>());
  sum_partials(s, splits, partial.at<float>(), dw, db);
}

}  // namespace

template <class Source>
void conv2d_tf32_backward_weights(const Conv2dShape& s, const Source& dy, const float* x, float* dw,
                                  float* db) {
  if (s.oc > 32) {
    run<64>(s, dy, x, dw, db);
  } else {
    run<32>(s, dy, x, dw, db);
  }
}
template void conv2d_tf32_backward_weights(const Conv2dShape&, const Plain&, const float*, float*,
                                           float*);
template void conv2d_tf32_backward_weights(const Conv2dShape&, const Masked&, const float*, float*,
                                           float*);
template void conv2d_tf32_backward_weights(const Conv2dShape&, const Pooled&, const float*, float*,
                                           float*);

}  // namespace pyconv::cuda
