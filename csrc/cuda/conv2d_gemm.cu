// Convolution as an implicit matrix product in float32: forward, and the data gradient with strides
// of 1, which is the same sum over the gradient with the kernel flipped.
//
// Rows of the product are output positions, columns are filters, and the sum runs over taps and
// channels, 16 channels of one tap a step. A block makes a tile of 128 or 64 positions, with as
// many threads, and N = 64 or 32 filters. The tile of the source and that of the weights for a step
// are staged in shared memory, two stages, so that those of the next step arrive while this one is
// multiplied: by asynchronous copies (sm_80 and later), or through registers where the source is a
// gradient that is put together on the way, and on older devices.
//
// A thread owns 8 positions and N / 8 filters. The source's tile is [position][16 channels], as it
// comes: a thread reads four channels of each of its positions at a time. shared_tiles.hpp says
// where everything lies.
//
// With pooling behind it, the 8 positions of a thread are two whole 2x2 windows.
#include <type_traits>

#include "async_copy.cuh"
#include "conv2d.cuh"

namespace pyconv::cuda {

namespace {

using namespace gemm_tiles;

// Which taps of a position lie outside an image of h x w: bit r for row r of the kernel, bit 15 + s
// for column s. The top bit, always set, is for channels behind the last.
constexpr unsigned no_channel = 1u << 31;
__device__ __forceinline__ unsigned taps_outside(const Taps& t, int h, int w, int i, int j) {
  unsigned outside = no_channel;
  for (int r = 0; r < t.kh; ++r) {
    const int row = i + r * t.dilation_h;
    if (row < 0 || row >= h) outside |= 1u << r;
  }
  for (int s = 0; s < t.kw; ++s) {
    const int column = j + s * t.dilation_w;
    if (column < 0 || column >= w) outside |= 1u << (15 + s);
  }
  return outside;
}

// A row of the tile while it is loaded, in few registers: what of its source's place does not
// change from step to step. Shift is what does, and is the same for all rows. (i, j) is where the
// first tap lies, k a channel.
template <class Source>
struct Cursor {  // Plain, Masked
  int offset;
  unsigned outside;

  __device__ __forceinline__ void set(const Source&, const Taps& t, int n, int i, int j, int k) {
    offset = ((n * t.h + i) * t.w + j) * t.c + k;
    outside = taps_outside(t, t.h, t.w, i, j);
  }
  struct Shift {
    int offset;

    __device__ __forceinline__ void set(const Source&, const Taps& t, int rows, int columns,
                                        int c) {
      offset = (rows * t.w + columns) * t.c + c;
    }
  };
  __device__ __forceinline__ auto read(const Source& source, const Shift& shift, bool valid) const {
    return source.read(static_cast<unsigned>(offset + shift.offset), valid);
  }
};
// The window of row i + d is that of row i, d / 2 further, and one more where both are odd; its
// position in the window is odd where one is.
template <>
struct Cursor<Pooled> {
  int offset;               // of the first tap's window
  int odd_row, odd_column;  // 0 or 1, of the first tap
  unsigned outside;

  __device__ __forceinline__ void set(const Pooled& source, const Taps& t, int n, int i, int j,
                                      int k) {
    const Plain& dy = source.dy;
    offset = ((n * dy.h + (i >> 1)) * dy.w + (j >> 1)) * dy.c + k;
    odd_row = i & 1, odd_column = j & 1;
    outside = taps_outside(t, 2 * dy.h, 2 * dy.w, i, j);
  }
  struct Shift {
    int offset, odd_row, odd_column;  // of windows from even taps; what odd ones add
    unsigned position;

    __device__ __forceinline__ void set(const Pooled& source, const Taps&, int rows, int columns,
                                        int c) {
      const Plain& dy = source.dy;
      offset = ((rows >> 1) * dy.w + (columns >> 1)) * dy.c + c;
      odd_row = rows & 1 ? dy.w * dy.c : 0;
      odd_column = columns & 1 ? dy.c : 0;
      position = Pooled::position(rows, columns);
    }
  };
  __device__ __forceinline__ auto read(const Pooled& source, const Shift& shift, bool valid) const {
    const int at = offset + shift.offset + odd_row * shift.odd_row + odd_column * shift.odd_column;
    return source.read(static_cast<unsigned>(at),
                       Pooled::position(odd_row, odd_column) ^ shift.position, valid);
  }
};

// The step of the sum that is being loaded, a tap and its first channel, and what follows from it.
template <class Source>
struct Step {
  int r = 0, s = 0, c = 0;
  unsigned tap;    // its bits of taps_outside()
  int weight_row;  // of the weights [tap and channel][filter]
  typename Cursor<Source>::Shift shift;

  __device__ __forceinline__ void set(const Source& source, const Taps& t, int unit) {
    tap = 1u << r | 1u << (15 + s) | (c + unit * 4 < t.c ? 0 : no_channel);
    weight_row = (r * t.kw + s) * t.c + c;
    shift.set(source, t, r * t.dilation_h, s * t.dilation_w, c);
  }
  __device__ __forceinline__ void next(const Source& source, const Taps& t, int unit) {
    c += depth;
    if (c >= t.c) {
      c = 0;
      if (++s == t.kw) s = 0, ++r;
    }
    set(source, t, unit);
  }
};

// ---------------------------------------------------------------------------------------------
// What happens to the sums. position() says which output a row of the block's tile is.

struct Store {
  static constexpr const char* name = "";
  Positions positions;
  Output out;

  static int64_t rows(const Store& s) { return s.positions.count; }
  template <int Rows>
  __device__ __forceinline__ bool position(int row, int& n, int& i, int& j) const {
    const unsigned index = blockIdx.x * Rows + row;
    if (index >= positions.count) return false;
    positions.locate(index, n, i, j);
    return true;
  }
  template <int Rows, int Columns>
  __device__ __forceinline__ void finish(int row, int column, int channels,
                                         const float (&sums)[thread_rows][Columns]) const {
#pragma unroll
    for (int part = 0; part < Columns / 4; ++part) {
      const int f = column + part * part_columns;
      if (f >= channels) return;
      float4 bias = zeros();
      if (out.bias != nullptr)
        bias = make_float4(out.bias[f], out.bias[f + 1], out.bias[f + 2], out.bias[f + 3]);
#pragma unroll
      for (int i = 0; i < thread_rows; ++i) {
        const unsigned index = blockIdx.x * Rows + row + i * row_step<Rows>;
        if (index >= positions.count) continue;
        float4 y = make_float4(sums[i][part * 4] + bias.x, sums[i][part * 4 + 1] + bias.y,
                               sums[i][part * 4 + 2] + bias.z, sums[i][part * 4 + 3] + bias.w);
        if (out.relu) y = make_float4(relu_of(y.x), relu_of(y.y), relu_of(y.z), relu_of(y.w));
        *reinterpret_cast<float4*>(out.y + static_cast<int64_t>(index) * channels + f) = y;
      }
    }
  }
};

// Rows row + row_step i, i = 0 to 3, are the positions of window `row` of the block's, i = 4 to 7
// those of window row + row_step.
struct Pool {
  static constexpr const char* name = " + pool";
  Positions windows;
  PooledOutput out;

  static int64_t rows(const Pool& p) { return int64_t{4} * p.windows.count; }
  template <int Rows>
  __device__ __forceinline__ unsigned window(int row, int half) const {
    return blockIdx.x * (Rows / 4) + row + half * row_step<Rows>;
  }
  template <int Rows>
  __device__ __forceinline__ bool position(int row, int& n, int& i, int& j) const {
    const int step = row / row_step<Rows>;
    const unsigned index = window<Rows>(row % row_step<Rows>, step / 4);
    if (index >= windows.count) return false;
    windows.locate(index, n, i, j);
    i = 2 * i + (step >> 1 & 1);
    j = 2 * j + (step & 1);
    return true;
  }
  template <int Rows, int Columns>
  __device__ __forceinline__ void finish(int row, int column, int channels,
                                         const float (&sums)[thread_rows][Columns]) const {
    const uint64_t offset = get(out.dropout.offset);
#pragma unroll
    for (int part = 0; part < Columns / 4; ++part) {
      const int f = column + part * part_columns;
      if (f >= channels) return;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const unsigned index = window<Rows>(row, half);
        if (index >= windows.count) continue;
        const int64_t at = static_cast<int64_t>(index) * channels + f;
        unsigned words[4] = {~0u, ~0u, ~0u, ~0u};
        if (out.dropout.threshold > 0) {
          const uint4 drawn = philox4x32_10(out.dropout.first + static_cast<uint64_t>(at) / 4,
                                            offset, out.dropout.seed);
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

template <int Rows, int N>
constexpr size_t shared_bytes = 2 * sizeof(float) * (Rows + N) * depth;

template <int Rows, int N, class Source, class Finish>
__global__ void __launch_bounds__(Rows, resident_blocks(3 * 128 / Rows, shared_bytes<Rows, N>))
    gemm_kernel(Taps t, Source source, const float* __restrict__ w, Finish finish) {
  constexpr int columns = N / 8;  // of a thread
  constexpr int source_loads = Rows / source_step<Rows>;
  constexpr int weights_down = weight_step<Rows, N>, weight_loads = depth / weights_down;
  constexpr bool async = std::is_same_v<Source, Plain> && PYCONV_SM80;
  __shared__ __align__(16) float source_tile[2][Rows * depth];
  __shared__ __align__(16) float weight_tile[2][depth * N];

  const int thread = threadIdx.x;
  const int first_filter = blockIdx.y * N;

  // What this thread loads: a unit of some rows of the source, and four filters of some rows of
  // weights.
  const Loader of_source = source_loader(thread), of_weights = weight_loader<N>(thread);
  Cursor<Source> cursors[source_loads];
#pragma unroll
  for (int i = 0; i < source_loads; ++i) {
    int n = 0, oh = 0, ow = 0;
    const bool exists =
        finish.template position<Rows>(of_source.row + i * source_step<Rows>, n, oh, ow);
    const int top = oh * t.stride_h - t.pad_top, left = ow * t.stride_w - t.pad_left;
    cursors[i].set(source, t, n, top, left, of_source.unit * 4);
    if (!exists) cursors[i].outside = ~0u;
  }
  float* const source_to = &source_tile[0][source_at(of_source.row, of_source.unit)];
  float* const weights_to = &weight_tile[0][weight_at<N>(of_weights.row, of_weights.unit * 4)];
  const int filter = first_filter + of_weights.unit * 4;
  const bool has_filter = filter < t.oc;
  const float* const weights = w + (of_weights.row * t.oc + filter);

  // What goes through registers is loaded in slices, each under its slice of the multiplications
  // and stored behind them, to need fewer of them. Copies all start with the first slice.
  constexpr int slices = N / 16;  // 256 multiplications each
  Step<Source> next;
  next.set(source, t, of_source.unit);
  constexpr int staged_source = source_loads / slices,
                staged_weights = ceil_div(weight_loads, slices);
  typename Source::Raw source_staged[staged_source];
  float4 weight_staged[staged_weights];
  const auto load = [&](int stage, int slice) {
#pragma unroll
    for (int i = 0; i < source_loads; ++i) {
      const bool valid = (cursors[i].outside & next.tap) == 0;
      if constexpr (async) {
        if (slice == 0) {
          copy_16_bytes_async(source_to + (stage * Rows + i * source_step<Rows>)*depth,
                              source.data + (cursors[i].offset + next.shift.offset), valid);
        }
      } else if (i / staged_source == slice) {
        source_staged[i % staged_source] = cursors[i].read(source, next.shift, valid);
      }
    }
#pragma unroll
    for (int i = 0; i < weight_loads; ++i) {
      const bool valid = has_filter && of_weights.row < t.c - next.c - i * weights_down;
      const float* const from = weights + t.oc * (next.weight_row + i * weights_down);
      if constexpr (PYCONV_SM80) {
        if (slice == 0) {
          copy_16_bytes_async(weights_to + N * (stage * depth + i * weights_down), from, valid);
        }
      } else if (i / staged_weights == slice) {
        weight_staged[i % staged_weights] = load_early_or_zeros(from, valid);
      }
    }
  };
  const auto store_staged = [&](int stage, int slice) {
    if constexpr (!async) {
#pragma unroll
      for (int i = 0; i < staged_source; ++i) {
        const int row = (slice * staged_source + i) * source_step<Rows>;
        *reinterpret_cast<float4*>(source_to + (stage * Rows + row) * depth) =
            source.value(source_staged[i]);
      }
    }
    if constexpr (!PYCONV_SM80) {
#pragma unroll
      for (int i = 0; i < staged_weights; ++i) {
        const int at = slice * staged_weights + i;
        if (at < weight_loads) {
          *reinterpret_cast<float4*>(weights_to + N * (stage * depth + at * weights_down)) =
              weight_staged[i];
        }
      }
    }
  };

  const Place place = place_of<Rows>(thread);
  float sums[thread_rows][columns] = {};
  const auto multiply = [&](int stage, int slice) {
#pragma unroll
    for (int u = slice * units / slices; u < (slice + 1) * units / slices; ++u) {
      const float* const from = &source_tile[stage][source_at(place.row, u)];
      float4 x[thread_rows];
#pragma unroll
      for (int i = 0; i < thread_rows; ++i)
        x[i] = *reinterpret_cast<const float4*>(from + i * row_step<Rows> * depth);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float4 f[columns / 4];
#pragma unroll
        for (int part = 0; part < columns / 4; ++part) {
          f[part] = *reinterpret_cast<const float4*>(
              &weight_tile[stage][weight_at<N>(u * 4 + k, place.column * 4 + part * part_columns)]);
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
  for (int slice = 0; slice < slices; ++slice) {
    load(0, slice);
    store_staged(0, slice);
  }
  next.next(source, t, of_source.unit);
  int loading = 1;  // stage
  for (int left = steps - 1; left >= 0; --left, loading ^= 1) {
    const bool more = left > 0;
    wait_for_copies();
    __syncthreads();  // the other stage has arrived, and everybody has finished with this one
#pragma unroll
    for (int slice = 0; slice < slices; ++slice) {
      if (more) load(loading, slice);
      __syncwarp();  // or the compiler moves the multiplications in front of the loads
      multiply(loading ^ 1, slice);
      if (more) store_staged(loading, slice);
    }
    next.next(source, t, of_source.unit);
  }
  finish.template finish<Rows>(place.row, first_filter + place.column * 4, t.oc, sums);
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

template <int Rows, int N, class Source, class Finish>
const KernelOf gemm{"conv2d_gemm", gemm_kernel<Rows, N, Source, Finish>, Rows,
                    std::string(Source::name) + Finish::name + " " + std::to_string(Rows) + "x" +
                        std::to_string(N)};
const KernelOf flip_weights{"conv2d_flip_weights", flip_weights_kernel, 256};

// How long tiles of rows x columns take for so many positions and filters, up to a factor: what the
// busiest multiprocessor of a large device multiplies, over the share of multiplications in the
// tile's main loop.
double duration(int64_t positions, int64_t filters, int rows, int columns) {
  constexpr int64_t multiprocessors = 132;
  const double share = (columns == 64 ? 0.88 : 0.82) - (rows == 64 ? 0.03 : 0.0);
  const int64_t tiles = ceil_div<int64_t>(positions, rows) * ceil_div<int64_t>(filters, columns);
  return static_cast<double>(ceil_div(tiles, multiprocessors) * rows * columns) / share;
}

// With the tile that takes least. Sums have the same order in all of them.
template <class Source, class Finish>
void run(const Taps& t, const Source& source, const float* w, const Finish& finish) {
  const int64_t positions = Finish::rows(finish);
  int rows = 128, columns = t.oc > 32 ? 64 : 32;
  for (const int r : {128, 64}) {
    for (const int c : {64, 32}) {
      if (duration(positions, t.oc, r, c) < duration(positions, t.oc, rows, columns))
        rows = r, columns = c;
    }
  }
  const dim3 blocks(static_cast<unsigned>(ceil_div<int64_t>(positions, rows)),
                    static_cast<unsigned>(ceil_div(t.oc, columns)));
  const auto launch = [&](const auto& kernel) { kernel(blocks, t, source, w, finish); };
  if (rows == 128) {
    columns == 64 ? launch(gemm<128, 64, Source, Finish>) : launch(gemm<128, 32, Source, Finish>);
  } else {
    columns == 64 ? launch(gemm<64, 64, Source, Finish>) : launch(gemm<64, 32, Source, Finish>);
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
