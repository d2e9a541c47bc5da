// 3x3 convolution with strides of 1 on tensor cores: forward and data gradient, factors rounded to
// TF32 (10 bits of mantissa, to nearest), sums in float32. sm_80 and later.
//
// A block of 4 warps makes 8 x 16 pixels of N = 64 or 32 filters. For 8 channels at a time it puts
// a patch of 10 x 18 pixels of the source into shared memory, once for all nine taps, and the nine
// taps' weights, packed by pack_weights_kernel as they are read; two stages. Rounding happens on
// the way into shared memory, not in the loop.
//
// A warp makes two rows of 16 pixels. mma.m16n8k8 (PTX ISA, "Matrix Fragments for mma.m16n8k8") has
// pixels as its rows; row j < 8 is pixel 2 j of an image row, row 8 + j is pixel 2 j + 1, so that a
// thread holds whole 2x2 windows: pooling needs no exchange. Operands are read by ldmatrix, whose
// rows are 16 bytes: four channels of a pixel or filter. Units of 16 bytes change places within 128
// bytes, so that the 8 rows of a matrix lie in different banks.
#include "async_copy.cuh"
#include "conv2d.cuh"
#include "tensor_cores.cuh"

namespace pyconv::cuda {

namespace {

using namespace tf32_tiles;

constexpr int patch_loads = ceil_div(2 * patch_pixels, threads);

__device__ __forceinline__ void load_matrices(const float* shared, unsigned (&m)[4]) {
#if PYCONV_SM80
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
#endif
}

// Tiles of an image, and the tile that this block makes.
struct Tiles {
  int rows, columns;

  __device__ __forceinline__ void locate(int& n, int& top, int& left) const {
    left = static_cast<int>(blockIdx.x % columns) * tile_columns;
    top = static_cast<int>(blockIdx.x / columns % rows) * tile_rows;
    n = static_cast<int>(blockIdx.x / columns / rows);
  }
};

// ---------------------------------------------------------------------------------------------
// What happens to the sums: sums[i][e] are those of pixel (row + i / 2, column + i % 2) and filter
// f + e. (row, column) is even.

struct Store {
  static constexpr const char* name = "";
  Output out;

  __device__ __forceinline__ void finish(const Taps& t, int n, int row, int column, int f,
                                         const float (&sums)[4][2]) const {
    const float b0 = out.bias != nullptr ? out.bias[f] : 0.0f;
    const float b1 = out.bias != nullptr ? out.bias[f + 1] : 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int oh = row + i / 2, ow = column + i % 2;
      if (oh >= t.oh || ow >= t.ow) continue;
      float2 y = make_float2(sums[i][0] + b0, sums[i][1] + b1);
      if (out.relu) y = make_float2(relu_of(y.x), relu_of(y.y));
      *reinterpret_cast<float2*>(
          out.y + ((static_cast<int64_t>(n) * t.oh + oh) * t.ow + ow) * t.oc + f) = y;
    }
  }
};

struct Pool {
  static constexpr const char* name = " + pool";
  PooledOutput out;

  __device__ __forceinline__ void finish(const Taps& t, int n, int row, int column, int f,
                                         const float (&sums)[4][2]) const {
    if (row / 2 >= out.ph || column / 2 >= out.pw) return;
    const int64_t at =
        ((static_cast<int64_t>(n) * out.ph + row / 2) * out.pw + column / 2) * t.oc + f;
    unsigned words[2] = {~0u, ~0u};
    if (out.dropout.threshold > 0) {
      const uint4 drawn = philox4x32_10(out.dropout.first + static_cast<uint64_t>(at) / 4,
                                        get(out.dropout.offset), out.dropout.seed);
      words[0] = at % 4 == 0 ? drawn.x : drawn.z;
      words[1] = at % 4 == 0 ? drawn.y : drawn.w;
    }
    float y[2];
    uint8_t winner[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float bias = out.bias != nullptr ? out.bias[f + e] : 0.0f;
      const float window[4] = {sums[0][e] + bias, sums[1][e] + bias, sums[2][e] + bias,
                               sums[3][e] + bias};
      finish_window(out.dropout, words[e], window, y[e], winner[e]);
    }
    *reinterpret_cast<float2*>(out.y + at) = make_float2(y[0], y[1]);
    *reinterpret_cast<uchar2*>(out.winner + at) = make_uchar2(winner[0], winner[1]);
  }
};

// ---------------------------------------------------------------------------------------------

template <int N>
constexpr size_t shared_bytes = 2 * sizeof(float) * (patch_pixels + taps * N) * depth;

template <int N, class Source, class Finish>
__global__ void __launch_bounds__(threads, resident_blocks(2, shared_bytes<N>))
    tf32_kernel(Taps t, Tiles tiles, Source source, const float* __restrict__ packed,
                Finish finish) {
  constexpr int filter_tiles = N / 8;
  constexpr int weight_loads = ceil_div(taps * N, loader_step);
  __shared__ __align__(128) float patch[2][patch_pixels * depth];
  __shared__ __align__(128) float weights[2][taps * N * depth];

  int n, top, left;
  tiles.locate(n, top, left);
  const int first_filter = blockIdx.y * N;
  const int thread = threadIdx.x, lane = thread % warp_size, warp = thread / warp_size;

  const Loader loader = loader_of(thread);
  typename Source::Raw staged[patch_loads];
  const auto load = [&](int stage, int c) {
#pragma unroll
    for (int i = 0; i < patch_loads; ++i) {
      const int pixel = loader.row + i * loader_step;
      const int ih = top - t.pad_top + pixel / patch_columns;
      const int iw = left - t.pad_left + pixel % patch_columns;
      const bool inside = pixel < patch_pixels && ih >= 0 && ih < t.h && iw >= 0 && iw < t.w;
      staged[i] = source.read(n, ih, iw, c + loader.unit * 4, inside);
    }
    const float* const from = packed + static_cast<int64_t>(c) * taps * t.oc;
#pragma unroll
    for (int i = 0; i < weight_loads; ++i) {
      const int row = loader.row + i * loader_step;
      if (row >= taps * N) break;
      const int filter = row % N, tap = row / N;
      copy_16_bytes_async(&weights[stage][tap * N * depth + weight_at(filter, loader.unit)],
                          from +
                              (static_cast<int64_t>(tap) * t.oc + first_filter + filter) * depth +
                              loader.unit * 4,
                          first_filter + filter < t.oc);
    }
  };
  const auto store_staged = [&](int stage) {
#pragma unroll
    for (int i = 0; i < patch_loads; ++i) {
      const int pixel = loader.row + i * loader_step;
      if (pixel < patch_pixels) {
        *reinterpret_cast<float4*>(&patch[stage][patch_at(pixel, loader.unit)]) =
            to_tf32(source.value(staged[i]));
      }
    }
  };

  const Loader patch_row = patch_row_of(thread), weight_row = weight_row_of(thread);
  const int weight_lane = weight_at(weight_row.row, weight_row.unit);

  float sums[2][filter_tiles][4] = {};
  const auto multiply = [&](int stage) {
#pragma unroll
    for (int r = 0; r < kernel; ++r) {
#pragma unroll
      for (int s = 0; s < kernel; ++s) {
        unsigned a[2][4];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          load_matrices(&patch[stage][patch_at(patch_row.row + (row + r) * patch_columns + s,
                                               patch_row.unit)],
                        a[row]);
        }
#pragma unroll
        for (int pair = 0; pair < filter_tiles / 2; ++pair) {
          unsigned b[4];
          load_matrices(&weights[stage][((r * kernel + s) * N + pair * 16) * depth + weight_lane],
                        b);
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            multiply_add(sums[row][pair * 2], a[row], b[0], b[1]);
            multiply_add(sums[row][pair * 2 + 1], a[row], b[2], b[3]);
          }
        }
      }
    }
  };

  load(0, 0);
  store_staged(0);
  int stage = 0;
  for (int c = 0; c < t.c; c += depth, stage ^= 1) {
    const bool more = c + depth < t.c;
    wait_for_copies();
    __syncthreads();  // this stage has arrived, and everybody has finished with the other
    if (more) load(stage ^ 1, c + depth);
    multiply(stage);
    if (more) store_staged(stage ^ 1);
  }

  const int row = top + 2 * warp, column = left + 2 * (lane / 4);
#pragma unroll
  for (int j = 0; j < filter_tiles; ++j) {
    const int f = first_filter + j * 8 + lane % 4 * 2;
    if (f >= t.oc) continue;
    const float window[4][2] = {{sums[0][j][0], sums[0][j][1]},
                                {sums[0][j][2], sums[0][j][3]},
                                {sums[1][j][0], sums[1][j][1]},
                                {sums[1][j][2], sums[1][j][3]}};
    finish.finish(t, n, row, column, f, window);
  }
}

// packed[c / 8][tap][f][c % 8], rounded: the weights of the sum over taps that t describes. The
// data gradient takes them flipped, with channels and filters exchanged.
__global__ void __launch_bounds__(256)
    pack_weights_kernel(Taps t, bool flipped, const float* __restrict__ w,
                        float* __restrict__ packed) {
  const int64_t size = static_cast<int64_t>(taps) * t.c * t.oc;
  for_each_index(size, [&](int64_t i) {
    const int64_t f = i / depth % t.oc, tap = i / depth / t.oc % taps;
    const int64_t c = i / depth / t.oc / taps * depth + i % depth;
    packed[i] = to_tf32(flipped ? w[((taps - 1 - tap) * t.oc + f) * t.c + c]
                                : w[(tap * t.c + c) * t.oc + f]);
  });
}

template <int N, class Source, class Finish>
const KernelOf tf32{"conv2d_tf32", tf32_kernel<N, Source, Finish>, threads,
                    std::string(Source::name) + Finish::name + " x" + std::to_string(N)};
const KernelOf pack_weights{"conv2d_pack_weights", pack_weights_kernel, 256};

// rows, columns: of the result, as far as they are wanted.
template <class Source, class Finish>
void run(const Taps& t, int64_t n, int64_t rows, int64_t columns, bool flipped,
         const Source& source, const float* w, const Finish& finish) {
  const int64_t size = static_cast<int64_t>(taps) * t.c * t.oc;
  const Workspace packed(sizeof(float) * size);
  pack_weights(grid_for(size, 256), t, flipped, w, packed.at<float>());
  const Tiles tiles{static_cast<int>(ceil_div<int64_t>(rows, tile_rows)),
                    static_cast<int>(ceil_div<int64_t>(columns, tile_columns))};
  const auto blocks = static_cast<unsigned>(n * tiles.rows * tiles.columns);
  if (t.oc > 32) {
    tf32<64, Source, Finish>(dim3(blocks, static_cast<unsigned>(ceil_div(t.oc, 64))), t, tiles,
                             source, packed.at<float>(), finish);
  } else {
    tf32<32, Source, Finish>(dim3(blocks), t, tiles, source, packed.at<float>(), finish);
  }
}

}  // namespace

void conv2d_tf32(const Conv2dShape& s, const float* x, const float* w, const Output& output) {
  const Taps t = forward_taps(s);
  run(t, s.n, s.oh, s.ow, false, plain_source(t, x), w, Store{output});
}

void conv2d_tf32(const Conv2dShape& s, const float* x, const float* w, const PooledOutput& output) {
  const Taps t = forward_taps(s);
  run(t, s.n, 2 * int64_t{output.ph}, 2 * int64_t{output.pw}, false, plain_source(t, x), w,
      Pool{output});
}

template <class Source>
void conv2d_tf32_backward_data(const Conv2dShape& s, const Source& dy, const float* w, float* dx) {
  run(backward_data_taps(s), s.n, s.h, s.w, true, dy, w, Store{Output{nullptr, false, dx}});
}
template void conv2d_tf32_backward_data(const Conv2dShape&, const Plain&, const float*, float*);
template void conv2d_tf32_backward_data(const Conv2dShape&, const Masked&, const float*, float*);
template void conv2d_tf32_backward_data(const Conv2dShape&, const Pooled&, const float*, float*);

}  // namespace pyconv::cuda
