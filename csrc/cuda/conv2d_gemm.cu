// Convolution as an implicit matrix product in float32: forward, and the data gradient with strides
// of 1, which is the same sum over the gradient with the kernel flipped.
//
// Rows of the product are output positions, columns are filters, and the sum runs over taps and
// channels, 16 channels of one tap a step. A block of 128 threads makes a tile of 128 positions and
// N = 64 or 32 filters. The tile of the source and that of the weights for a step are staged in
// shared memory, two stages, so that those of the next step arrive while this one is multiplied:
// by asynchronous copies (sm_80 and later), or through registers where the source is a gradient
// that is put together on the way, and on older devices.
//
// A thread owns 8 positions and N / 8 filters. The source's tile is [position][16 channels], as it
// comes: a thread reads four channels of each of its positions at a time. The units of four
// channels change places by bits 1 and 2 of the position, so that the positions next to each other
// which a warp reads lie in different banks. In a warp, lane ^ 1 reads the same source and lane ^ 2
// the same weights: 16-byte reads of shared memory go four lanes of 8 at a time, and two of those
// merge where such pairs read the same.
//
// With pooling behind it, the 8 positions of a thread are two whole 2x2 windows.
#include <type_traits>

#include "async_copy.cuh"
#include "conv2d.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 128;
constexpr int tile_rows = 128;  // positions of a block
constexpr int thread_rows = 8;  // positions of a thread, 16 apart
constexpr int row_step = tile_rows / thread_rows;
constexpr int depth = 16;         // channels of a step
constexpr int units = depth / 4;  // 16-byte units of it

// Which rows and columns of the tile a thread owns: row + 16 i, column * 4 + {0, 1, 2, 3}, and for
// N = 64 the same 32 columns further.
struct Place {
  int row, column;
};
__device__ __forceinline__ Place place_of(int thread) {
  const int lane = thread % warp_size, warp = thread / warp_size;
  return {warp % 2 * 8 + (lane >> 1 & 1) + (lane >> 3 & 3) * 2,
          warp / 2 * 4 + (lane & 1) + (lane >> 2 & 1) * 2};
}

// Where unit `unit` of a row of the source's tile lies.
__device__ __forceinline__ int swizzled(int row, int unit) {
  return row * depth + ((unit ^ (row >> 1 & 3)) * 4);
}

// The step of the sum that is being loaded: a tap and its first channel.
struct Step {
  int r = 0, s = 0, c = 0;
  int offset = 0;  // of its source from that of the first tap

  __device__ __forceinline__ void next(const Taps& t) {
    c += depth;
    if (c >= t.c) {
      c = 0;
      if (++s == t.kw) s = 0, ++r;
    }
    offset = (r * t.dilation_h * t.w + s * t.dilation_w) * t.c + c;
  }
};

// Which taps of a position lie inside the image: bit r for row r of the kernel, bit 16 + s for
// column s.
__device__ __forceinline__ unsigned taps_inside(const Taps& t, int i, int j) {
  unsigned inside = 0;
  for (int r = 0; r < t.kh; ++r) {
    const int row = i + r * t.dilation_h;
    if (row >= 0 && row < t.h) inside |= 1u << r;
  }
  for (int s = 0; s < t.kw; ++s) {
    const int column = j + s * t.dilation_w;
    if (column >= 0 && column < t.w) inside |= 1u << (16 + s);
  }
  return inside;
}

// A row of the tile while it is loaded, in few registers: the source of its first tap, from which
// that of each step is found. (n, i, j) is where the first tap lies, k a channel.
template <class Source>
struct Cursor {  // Plain, Masked
  int offset;

  __device__ __forceinline__ void set(const Source&, const Taps& t, int n, int i, int j, int k) {
    offset = ((n * t.h + i) * t.w + j) * t.c + k;
  }
  __device__ __forceinline__ auto read(const Source& source, const Taps&, const Step& step,
                                       bool valid) const {
    return source.read(offset + step.offset, valid);
  }
};
template <>
struct Cursor<Pooled> {
  int offset, ij;  // of the pooled image's channel; i and j in 16 bits each

  __device__ __forceinline__ void set(const Pooled& source, const Taps&, int n, int i, int j,
                                      int k) {
    offset = n * source.dy.h * source.dy.w * source.dy.c + k;
    ij = i * 65536 + (j & 65535);
  }
  __device__ __forceinline__ auto read(const Pooled& source, const Taps& t, const Step& step,
                                       bool valid) const {
    const int i = (ij >> 16) + step.r * t.dilation_h;
    const int j = static_cast<int16_t>(ij) + step.s * t.dilation_w;
    return source.read(offset + step.c, i, j, valid);
  }
};

// ---------------------------------------------------------------------------------------------
// What happens to the sums. position() says which output a row of the block's tile is.

struct Store {
  static constexpr const char* name = "";
  Positions positions;
  Output out;

  static int64_t rows(const Store& s) { return s.positions.count; }
  __device__ __forceinline__ bool position(int row, int& n, int& i, int& j) const {
    const unsigned index = blockIdx.x * tile_rows + row;
    if (index >= positions.count) return false;
    positions.locate(index, n, i, j);
    return true;
  }
  template <int Columns>
  __device__ __forceinline__ void finish(int row, int column, int channels,
                                         const float (&sums)[thread_rows][Columns]) const {
#pragma unroll
    for (int part = 0; part < Columns / 4; ++part) {
      const int f = column + part * 32;
      if (f >= channels) return;
      float4 bias = zeros();
      if (out.bias != nullptr)
        bias = make_float4(out.bias[f], out.bias[f + 1], out.bias[f + 2], out.bias[f + 3]);
#pragma unroll
      for (int i = 0; i < thread_rows; ++i) {
        const unsigned index = blockIdx.x * tile_rows + row + i * row_step;
        if (index >= positions.count) continue;
        float4 y = make_float4(sums[i][part * 4] + bias.x, sums[i][part * 4 + 1] + bias.y,
                               sums[i][part * 4 + 2] + bias.z, sums[i][part * 4 + 3] + bias.w);
        if (out.relu) y = make_float4(relu_of(y.x), relu_of(y.y), relu_of(y.z), relu_of(y.w));
        *reinterpret_cast<float4*>(out.y + static_cast<int64_t>(index) * channels + f) = y;
      }
    }
  }
};

// Rows row + 16 i, i = 0 to 3, are the positions of window `row` of the block's 32, i = 4 to 7
// those of window row + 16.
struct Pool {
  static constexpr const char* name = " + pool";
  Positions windows;
  PooledOutput out;

  static int64_t rows(const Pool& p) { return int64_t{4} * p.windows.count; }
  __device__ __forceinline__ unsigned window(int row, int half) const {
    return blockIdx.x * (tile_rows / 4) + row + half * row_step;
  }
  __device__ __forceinline__ bool position(int row, int& n, int& i, int& j) const {
    const int step = row / row_step;
    const unsigned index = window(row % row_step, step / 4);
    if (index >= windows.count) return false;
    windows.locate(index, n, i, j);
    i = 2 * i + (step >> 1 & 1);
    j = 2 * j + (step & 1);
    return true;
  }
  template <int Columns>
  __device__ __forceinline__ void finish(int row, int column, int channels,
                                         const float (&sums)[thread_rows][Columns]) const {
    const uint64_t offset = get(out.dropout.offset);
#pragma unroll
    for (int part = 0; part < Columns / 4; ++part) {
      const int f = column + part * 32;
      if (f >= channels) return;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned index = window(row, half);
        if (index >= windows.count) continue;
        const int64_t at = static_cast<int64_t>(index) * channels + f;
        unsigned words[4] = {~0u, ~0u, ~0u, ~0u};
        if (out.dropout.threshold > 0) {
          const uint4 drawn =
              philox4x32_10(static_cast<uint64_t>(at) / 4, offset, out.dropout.seed);
          words[0] = drawn.x, words[1] = drawn.y, words[2] = drawn.z, words[3] = drawn.w;
        }
        float y[4];
        uint8_t winner[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float bias = out.bias != nullptr ? out.bias[f + k] : 0.0f;
          const float window[4] = {
              sums[half * 4][part * 4 + k] + bias, sums[half * 4 + 1][part * 4 + k] + bias,
              sums[half * 4 + 2][part * 4 + k] + bias, sums[half * 4 + 3][part * 4 + k] + bias};
          finish_window(out.dropout, words[k], window, y[k], winner[k]);
        }
        *reinterpret_cast<float4*>(out.y + at) = make_float4(y[0], y[1], y[2], y[3]);
        *reinterpret_cast<uchar4*>(out.winner + at) =
            make_uchar4(winner[0], winner[1], winner[2], winner[3]);
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------

// Blocks that a multiprocessor should hold. A source that is put together takes more registers than
// three would leave.
template <class Source>
constexpr int resident_blocks = std::is_same_v<Source, Plain> ? 3 : 2;

template <int N, class Source, class Finish>
__global__ void __launch_bounds__(threads, resident_blocks<Source>)
    gemm_kernel(Taps t, Source source, const float* __restrict__ w, Finish finish) {
  constexpr int columns = N / 8;  // of a thread
  constexpr int source_loads = tile_rows * units / threads, weight_loads = depth * N / 4 / threads;
  constexpr bool async = std::is_same_v<Source, Plain> && PYCONV_SM80;
  __shared__ __align__(16) float source_tile[2][tile_rows * depth];
  __shared__ __align__(16) float weight_tile[2][depth * N];

  const int thread = threadIdx.x;
  const int first_filter = blockIdx.y * N;

  // What this thread loads: unit `unit` of rows load_row + 32 i, and four filters of rows of
  // weights.
  const int unit = thread % units, load_row = thread / units;
  Cursor<Source> cursors[source_loads];
  unsigned inside[source_loads];
#pragma unroll
  for (int i = 0; i < source_loads; ++i) {
    int n = 0, oh = 0, ow = 0;
    const bool exists = finish.position(load_row + i * (threads / units), n, oh, ow);
    const int top = oh * t.stride_h - t.pad_top, left = ow * t.stride_w - t.pad_left;
    cursors[i].set(source, t, n, top, left, unit * 4);
    inside[i] = exists ? taps_inside(t, top, left) : 0;
  }
  const int filter = thread % (N / 4) * 4, load_k = thread / (N / 4);
  constexpr int k_step = 4 * threads / N;
  const bool has_filter = first_filter + filter < t.oc;

  // What goes through registers is loaded in two halves, each under one half of the multiplications
  // before it is stored, to need fewer of them. Copies all start with the first half.
  Step next;
  constexpr int staged_source = ceil_div(source_loads, 2),
                staged_weights = ceil_div(weight_loads, 2);
  typename Source::Raw source_staged[staged_source];
  float4 weight_staged[staged_weights];
  bool source_valid[staged_source], weight_valid[staged_weights];
  const auto load = [&](int stage, int half) {
    const bool has_channel = next.c + unit * 4 < t.c;
#pragma unroll
    for (int i = 0; i < source_loads; ++i) {
      const bool valid = (inside[i] >> next.r & inside[i] >> (16 + next.s) & 1) && has_channel;
      if constexpr (async) {
        if (half == 0) {
          copy_16_bytes_async(&source_tile[stage][swizzled(load_row + i * (threads / units), unit)],
                              source.data + (cursors[i].offset + next.offset), valid);
        }
      } else if (i / staged_source == half) {
        source_valid[i % staged_source] = valid;
        source_staged[i % staged_source] = cursors[i].read(source, t, next, valid);
      }
    }
#pragma unroll
    for (int i = 0; i < weight_loads; ++i) {
      const int k = load_k + i * k_step, channel = next.c + k;
      const bool valid = has_filter && channel < t.c;
      const float* const from =
          w + (((next.r * t.kw + next.s) * t.c + channel) * t.oc + first_filter + filter);
      if constexpr (PYCONV_SM80) {
        if (half == 0) copy_16_bytes_async(&weight_tile[stage][k * N + filter], from, valid);
      } else if (i / staged_weights == half) {
        weight_valid[i % staged_weights] = valid;
        weight_staged[i % staged_weights] = load_early(valid ? from : w);
      }
    }
    if (half == 1) next.next(t);
  };
  const auto store_staged = [&](int stage, int half) {
    if constexpr (!async) {
#pragma unroll
      for (int i = 0; i < staged_source; ++i) {
        const int row = load_row + (half * staged_source + i) * (threads / units);
        *reinterpret_cast<float4*>(&source_tile[stage][swizzled(row, unit)]) =
            source_valid[i] ? source.value(source_staged[i]) : zeros();
      }
    }
    if constexpr (!PYCONV_SM80) {
#pragma unroll
      for (int i = 0; i < staged_weights; ++i) {
        const int at = half * staged_weights + i;
        if (at < weight_loads) {
          *reinterpret_cast<float4*>(&weight_tile[stage][(load_k + at * k_step) * N + filter]) =
              weight_valid[i] ? weight_staged[i] : zeros();
        }
      }
    }
  };

  const Place place = place_of(thread);
  float sums[thread_rows][columns] = {};
  const auto multiply = [&](int stage, int half) {
#pragma unroll
    for (int u = half * units / 2; u < (half + 1) * units / 2; ++u) {
      float4 x[thread_rows];
#pragma unroll
      for (int i = 0; i < thread_rows; ++i) {
        x[i] = *reinterpret_cast<const float4*>(
            &source_tile[stage][swizzled(place.row + i * row_step, u)]);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float4 f[columns / 4];
#pragma unroll
        for (int part = 0; part < columns / 4; ++part) {
          f[part] = *reinterpret_cast<const float4*>(
              &weight_tile[stage][(u * 4 + k) * N + place.column * 4 + part * 32]);
        }
#pragma unroll
        for (int i = 0; i < thread_rows; ++i) {
          const float value = k == 0 ? x[i].x : k == 1 ? x[i].y : k == 2 ? x[i].z : x[i].w;
#pragma unroll
          for (int part = 0; part < columns / 4; ++part) {
            sums[i][part * 4] += value * f[part].x;
            sums[i][part * 4 + 1] += value * f[part].y;
            sums[i][part * 4 + 2] += value * f[part].z;
            sums[i][part * 4 + 3] += value * f[part].w;
          }
        }
      }
    }
  };

  const int steps = t.kh * t.kw * ceil_div(t.c, depth);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    load(0, half);
    store_staged(0, half);
  }
  int stage = 0;
  for (int step = 0; step < steps; ++step, stage ^= 1) {
    const bool more = step + 1 < steps;
    wait_for_copies();
    __syncthreads();  // this stage has arrived, and everybody has finished with the other
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (more) load(stage ^ 1, half);
      multiply(stage, half);
      if (more) store_staged(stage ^ 1, half);
    }
  }
  finish.finish(place.row, first_filter + place.column * 4, t.oc, sums);
}

// flipped[tap][f][c] = w[last tap - tap][c][f]
__global__ void __launch_bounds__(256)
    flip_weights_kernel(int taps, int c, int oc, const float* __restrict__ w,
                        float* __restrict__ flipped) {
  const int64_t size = static_cast<int64_t>(taps) * c * oc;
  for_each_index(size, [&](int64_t i) {
    const int64_t k = i % c, f = i / c % oc, tap = i / c / oc;
    flipped[i] = w[((taps - 1 - tap) * c + k) * oc + f];
  });
}

template <int N, class Source, class Finish>
const KernelOf gemm{"conv2d_gemm", gemm_kernel<N, Source, Finish>, threads,
                    std::string(Source::name) + Finish::name + " x" + std::to_string(N)};
const KernelOf flip_weights{"conv2d_flip_weights", flip_weights_kernel, 256};

template <class Source, class Finish>
void run(const Taps& t, const Source& source, const float* w, const Finish& finish) {
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(Finish::rows(finish), tile_rows));
  if (t.oc > 32) {
    gemm<64, Source, Finish>(dim3(blocks, static_cast<unsigned>(ceil_div(t.oc, 64))), t, source, w,
                             finish);
  } else {
    gemm<32, Source, Finish>(dim3(blocks), t, source, w, finish);
  }
}

}  // namespace

void conv2d_gemm(const Conv2dShape& s, const float* x, const float* w, const Output& output) {
  const Taps t = forward_taps(s);
  run(t, plain_source(t, x), w, Store{Positions(s.n, s.oh, s.ow), output});
}

void conv2d_gemm(const Conv2dShape& s, const float* x, const float* w, const PooledOutput& output) {
  const Taps t = forward_taps(s);
  run(t, plain_source(t, x), w, Pool{Positions(s.n, output.ph, output.pw), output});
}

template <class Source>
void conv2d_gemm_backward_data(const Conv2dShape& s, const Source& dy, const float* w, float* dx) {
  const Taps t = backward_data_taps(s);
  const int64_t size = s.kh * s.kw * s.c * s.oc;
  const Workspace flipped(sizeof(float) * size);
  flip_weights(grid_for(size, 256), static_cast<int>(s.kh * s.kw), static_cast<int>(s.c),
               static_cast<int>(s.oc), w, flipped.at<float>());
  run(t, dy, flipped.at<float>(), Store{Positions(s.n, s.h, s.w), Output{nullptr, false, dx}});
}
template void conv2d_gemm_backward_data(const Conv2dShape&, const Plain&, const float*, float*);
template void conv2d_gemm_backward_data(const Conv2dShape&, const Masked&, const float*, float*);
template void conv2d_gemm_backward_data(const Conv2dShape&, const Pooled&, const float*, float*);

}  // namespace pyconv::cuda
