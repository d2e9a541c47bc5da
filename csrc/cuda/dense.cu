// Dense layer, forward and backward.
//
//   dense                   y  = relu(x * w + b)      overwrites y
//   dense_backward_data     dx = dy * w^T             overwrites dx
//   dense_backward_weights  dw = x^T * dy, db         overwrites dw, db
//
// Such a product is a 1x1 convolution of images of one pixel, and where it fills the device, the
// convolution's kernels compute it. The others have few results and long sums: a layer of ten units
// at a batch of 256 has 2,560. So here a block makes a small tile, 32 x 32 results, and its eight
// warps share the sum out among them, eight terms of every 64; what they have is added up, in
// order, at the end. Sizes may be any.
#include <type_traits>

#include "launch.cuh"
#include "shared_tiles.hpp"

namespace pyconv::cuda {

namespace {

using namespace dense_tiles;

// A matrix as it lies in memory, row by row: x, w, or dy without ReLU.
struct Matrix {
  static constexpr const char* name = "";
  const float* data;
  int rows, columns;

  __device__ __forceinline__ float at(int offset) const { return data[offset]; }
  __device__ __forceinline__ float beside() const { return 0.0f; }
};
// dy where the forward pass's output y is positive.
struct MaskedMatrix : Matrix {
  static constexpr const char* name = " (ReLU)";
  const float* y;

  __device__ __forceinline__ float at(int offset) const {
    return y[offset] > 0.0f ? data[offset] : 0.0f;
  }
};
// x with a column of ones behind it, which makes the bias gradient of dy.
struct MatrixAndOnes : Matrix {
  __device__ __forceinline__ float beside() const { return 1.0f; }
};

// The part of a matrix that a step multiplies: 32 rows of 64 terms, or 64 terms of 32 columns. A
// thread loads values of one column of it.
template <class Source, bool AlongTerms>
struct Operand {
  static constexpr bool along_terms = AlongTerms;
  static constexpr int width = AlongTerms ? depth : tile, down = threads / width;
  Source source;

  // From row `row` and column `column` of the matrix on.
  __device__ __forceinline__ void load(int row, int column, float (&values)[loads]) const {
    row += threadIdx.x / width, column += threadIdx.x % width;
    const int left = source.rows - row, offset = row * source.columns + column;
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      values[i] = i * down >= left           ? 0.0f
                  : column < source.columns  ? source.at(offset + i * down * source.columns)
                  : column == source.columns ? source.beside()
                                             : 0.0f;
    }
  }
  static __device__ __forceinline__ void store(float* tile, const float (&values)[loads]) {
    const int row = threadIdx.x / width, column = threadIdx.x % width;
#pragma unroll
    for (int i = 0; i < loads; ++i) tile[tile_at<AlongTerms>(row + i * down, column)] = values[i];
  }
  // That of the product's rows (or columns) `first` on, and of terms `term` on.
  __device__ __forceinline__ void load_step(int first, int term, float (&values)[loads]) const {
    AlongTerms ? load(first, term, values) : load(term, first, values);
  }
};

// Four terms, from k on, of four of the Count rows (or columns) of a lane, from its group-th four
// on.
template <bool AlongTerms, int Count>
__device__ __forceinline__ void read(const float* tile, int first, int group, int k,
                                     float (&values)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = row_of<AlongTerms, Count>(first, AlongTerms ? group * 4 + i : group * 4);
    const float4 v = *reinterpret_cast<const float4*>(
        tile + (AlongTerms ? tile_at<true>(row, k) : tile_at<false>(k + i, row)));
    const float read[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) (AlongTerms ? values[i][j] : values[j][i]) = read[j];
  }
}

// Results [rows][columns]; those of row bias_row, if there is one, are written elsewhere.
struct Product {
  int rows, columns, terms;
  const float* bias;  // of each column; may be null
  bool relu;
  float* result;
  int bias_row;
  float* bias_result;  // may be null
};

template <class A, class B>
__global__ void __launch_bounds__(threads, 2) dense_kernel(Product p, A a, B b) {
  __shared__ __align__(16) float shared[shared_floats];
  float* const a_tiles = shared;  // two stages each
  float* const b_tiles = shared + 2 * tile_floats;

  const int thread = threadIdx.x, warp = thread / warp_size;
  const int first_row = blockIdx.x * tile, first_column = blockIdx.y * tile;
  const Place place = place_of(thread % warp_size);
  float sums[thread_rows][thread_columns] = {};
  float a_loaded[loads], b_loaded[loads];
  const auto load = [&](int term) {
    a.load_step(first_row, term, a_loaded);
    b.load_step(first_column, term, b_loaded);
  };
  const auto store = [&](int stage) {
    A::store(a_tiles + stage * tile_floats, a_loaded);
    B::store(b_tiles + stage * tile_floats, b_loaded);
  };

  load(0);
  store(0);
  for (int term = 0, stage = 0; term < p.terms; term += depth, stage ^= 1) {
    __syncthreads();  // the stage is there, and nobody reads the other one any more
    const bool more = term + depth < p.terms;
    if (more) load(term + depth);
#pragma unroll 1  // in few registers
    for (int k = 0; k < warp_terms; k += 4) {
      float x[4][4];
      read<A::along_terms, thread_rows>(a_tiles + stage * tile_floats, place.row, 0,
                                        warp * warp_terms + k, x);
#pragma unroll
      for (int group = 0; group < thread_columns / 4; ++group) {
        float w[4][4];
        read<B::along_terms, thread_columns>(b_tiles + stage * tile_floats, place.column, group,
                                             warp * warp_terms + k, w);
#pragma unroll
        for (int term_of_four = 0; term_of_four < 4; ++term_of_four) {
#pragma unroll
          for (int i = 0; i < thread_rows; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j)
              sums[i][group * 4 + j] += x[i][term_of_four] * w[j][term_of_four];
          }
        }
      }
    }
    if (more) store(stage ^ 1);
  }

  __syncthreads();  // the tiles become the warps' sums
#pragma unroll
  for (int i = 0; i < thread_rows; ++i) {
#pragma unroll
    for (int j = 0; j < thread_columns; ++j) {
      shared[sum_at(warp, row_of<A::along_terms, thread_rows>(place.row, i),
                    row_of<B::along_terms, thread_columns>(place.column, j))] = sums[i][j];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = thread; i < tile * tile; i += threads) {
    const int row = first_row + i / tile, column = first_column + i % tile;
    if (row >= p.rows || column >= p.columns) continue;
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < warps; ++part) sum += shared[sum_at(part, i / tile, i % tile)];
    if (p.bias != nullptr) sum += p.bias[column];
    if (p.relu) sum = relu_of(sum);
    if (row != p.bias_row) {
      p.result[static_cast<int64_t>(row) * p.columns + column] = sum;
    } else if (p.bias_result != nullptr) {
      p.bias_result[column] = sum;
    }
  }
}

template <class Source>
using AlongTerms = Operand<Source, true>;
template <class Source>
using AlongRows = Operand<Source, false>;

const KernelOf forward{"dense", dense_kernel<AlongTerms<Matrix>, AlongRows<Matrix>>, threads};
template <class Source>
const KernelOf data{"dense_backward_data", dense_kernel<AlongTerms<Source>, AlongTerms<Matrix>>,
                    threads, Source::name};
template <class Source>
const KernelOf weights{"dense_backward_weights",
                       dense_kernel<AlongRows<MatrixAndOnes>, AlongRows<Source>>, threads,
                       Source::name};

template <class Kernel, class A, class B>
void run(const Kernel& kernel, const Product& p, const A& a, const B& b) {
  kernel(dim3(static_cast<unsigned>(ceil_div(p.rows, tile)),
              static_cast<unsigned>(ceil_div(p.columns, tile))),
         p, a, b);
}

// Whether the convolution's tiles of 128 x 64 results are enough to keep a large device busy, or
// the matrices too large for this kernel's 32-bit numbers.
bool is_large(const DenseShape& s, int64_t rows, int64_t columns) {
  constexpr int64_t enough = 132, most = int64_t{1} << 31;
  const int64_t n = s.n + depth, in = s.in + depth, out = s.out + depth;  // of whole steps
  return ceil_div<int64_t>(rows, 128) * ceil_div<int64_t>(columns, 64) >= enough ||
         n * in >= most || in * out >= most || n * out >= most;
}

int narrow(int64_t value) { return static_cast<int>(value); }
Matrix matrix(const float* data, int64_t rows, int64_t columns) {
  return {data, narrow(rows), narrow(columns)};
}

Conv2dShape as_conv2d(const DenseShape& s) {
  Conv2dShape c{};
  c.n = s.n, c.h = 1, c.w = 1, c.c = s.in;
  c.kh = 1, c.kw = 1;
  c.oh = 1, c.ow = 1, c.oc = s.out;
  c.stride_h = 1, c.stride_w = 1, c.dilation_h = 1, c.dilation_w = 1;
  c.groups = 1;
  return c;
}

// Calls function(dy), or that of dy where y is positive.
template <class Function>
void with_gradient(const DenseShape& s, Activation activation, const float* dy, const float* y,
                   const Function& function) {
  if (activation == Activation::relu) {
    function(MaskedMatrix{matrix(dy, s.n, s.out), y});
  } else {
    function(matrix(dy, s.n, s.out));
  }
}

}  // namespace

void dense(const DenseShape& s, Activation activation, const float* x, const float* w,
           const float* b, float* y) {
  if (s.n == 0) return;
  if (is_large(s, s.n, s.out)) return conv2d(as_conv2d(s), activation, x, w, b, y);
  const Product p{narrow(s.n), narrow(s.out), narrow(s.in), b, activation == Activation::relu, y,
                  -1,          nullptr};
  run(forward, p, AlongTerms<Matrix>{matrix(x, s.n, s.in)},
      AlongRows<Matrix>{matrix(w, s.in, s.out)});
}

void dense_backward_data(const DenseShape& s, Activation activation, const float* dy,
                         const float* y, const float* w, float* dx) {
  if (s.n == 0) return;
  if (is_large(s, s.n, s.in)) {
    return conv2d_backward_data(as_conv2d(s), activation, dy, y, w, dx);
  }
  const Product p{narrow(s.n), narrow(s.in), narrow(s.out), nullptr, false, dx, -1, nullptr};
  with_gradient(s, activation, dy, y, [&](const auto& source) {
    using Source = std::decay_t<decltype(source)>;
    run(data<Source>, p, AlongTerms<Source>{source}, AlongTerms<Matrix>{matrix(w, s.in, s.out)});
  });
}

void dense_backward_weights(const DenseShape& s, Activation activation, const float* dy,
                            const float* y, const float* x, float* dw, float* db) {
  if (s.n == 0 || is_large(s, s.in, s.out)) {
    return conv2d_backward_weights(as_conv2d(s), activation, dy, y, x, dw, db);
  }
  const int in = narrow(s.in);
  const Product p{in + 1, narrow(s.out), narrow(s.n), nullptr, false, dw, in, db};
  with_gradient(s, activation, dy, y, [&](const auto& source) {
    using Source = std::decay_t<decltype(source)>;
    run(weights<Source>, p, AlongRows<MatrixAndOnes>{{matrix(x, s.n, s.in)}},
        AlongRows<Source>{source});
  });
}

}  // namespace pyconv::cuda
