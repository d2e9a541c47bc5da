// Average pooling, forward and backward.
//
//   avg_pool2d           y  = mean of the window's pixels in the image        overwrites y
//   avg_pool2d_backward  dx = sum of dy / pixels over the windows around it   overwrites dx
//
// x [n, h, w, c], y and dy [n, oh, ow, c]. Padding does not count.
//
// A thread computes one pixel of the result, in one channel or four. A window's rows are summed one
// by one and then added up, as on the CPU. Where windows are large and few, whole images for
// instance, threads share them: each sums some of the rows, and one adds up what they found.
// Backward a thread looks for the windows around its pixel, so nothing is added to memory.
#include "images.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;

// From the window's first pixel in the image.
template <int lanes>
__device__ __forceinline__ Pack<float, lanes> sum_of_row(const Pack<float, lanes>* x,
                                                         int64_t columns, int64_t packs) {
  Pack<float, lanes> sum{};
#pragma unroll 4
  for (int64_t q = 0; q < columns; ++q) {
    const Pack<float, lanes> value = x[q * packs];
#pragma unroll
    for (int l = 0; l < lanes; ++l) sum.lane[l] += value.lane[l];
  }
  return sum;
}

template <int lanes>
__device__ __forceinline__ void add(Pack<float, lanes>& sum, const Pack<float, lanes>& value) {
#pragma unroll
  for (int l = 0; l < lanes; ++l) sum.lane[l] += value.lane[l];
}

// The window of a result.
template <int lanes>
struct Window {
  int64_t rows, columns, line;  // of the image that it has; from a row to the next
  const Pack<float, lanes>* x;  // its first pixel there

  __device__ __forceinline__ Window(const Pool2dShape& s, const Pack<float, lanes>* image,
                                    const Place& p, int64_t packs) {
    const int64_t top = p.row * s.stride_h - s.pad_top, left = p.column * s.stride_w - s.pad_left;
    const Range r = positions_inside(top, s.pool_h, s.h);
    const Range q = positions_inside(left, s.pool_w, s.w);
    rows = r.end - r.begin, columns = q.end - q.begin, line = s.w * packs;
    x = image + ((p.n * s.h + top + r.begin) * s.w + left + q.begin) * packs + p.pack;
  }

  __device__ __forceinline__ void finish(Pack<float, lanes>& sum) const {
    const auto pixels = static_cast<float>(rows * columns);
#pragma unroll
    for (int l = 0; l < lanes; ++l) sum.lane[l] /= pixels;
  }
};

template <int lanes>
__global__ void __launch_bounds__(threads)
    forward_kernel(Pool2dShape s, const Pack<float, lanes>* __restrict__ x,
                   Pack<float, lanes>* __restrict__ y) {
  const int64_t packs = s.c / lanes;
  for_each_index(s.n * s.oh * s.ow * packs, [&](int64_t index) {
    const Window<lanes> window(s, x, Place(index, s.oh, s.ow, packs), packs);
    Pack<float, lanes> sum{};
    for (int64_t r = 0; r < window.rows; ++r)
      add(sum, sum_of_row(window.x + r * window.line, window.columns, packs));
    window.finish(sum);
    y[index] = sum;
  });
}

// Threads of a block that share a window, and windows of a block; the latter lie side by side.
constexpr int sharers = 16, shared_windows = threads / sharers;

// Sharer i sums the rows i, i + sharers, ... of its window.
template <int lanes>
__global__ void __launch_bounds__(threads)
    shared_forward_kernel(Pool2dShape s, const Pack<float, lanes>* __restrict__ x,
                          Pack<float, lanes>* __restrict__ y) {
  __shared__ Pack<float, lanes> sums[sharers][shared_windows];
  const int64_t packs = s.c / lanes, results = s.n * s.oh * s.ow * packs;
  const int at = static_cast<int>(threadIdx.x) % shared_windows;
  const int sharer = static_cast<int>(threadIdx.x) / shared_windows;
  const int64_t step = static_cast<int64_t>(gridDim.x) * shared_windows;
  // All threads of a block take as many turns.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * shared_windows; first < results;
       first += step) {
    const int64_t index = first + at;
    const bool exists = index < results;
    const Window<lanes> window(s, x, Place(exists ? index : 0, s.oh, s.ow, packs), packs);
    Pack<float, lanes> sum{};
    if (exists) {
      for (int64_t r = sharer; r < window.rows; r += sharers)
        add(sum, sum_of_row(window.x + r * window.line, window.columns, packs));
    }
    sums[sharer][at] = sum;
    __syncthreads();
    if (exists && sharer == 0) {
      for (int i = 1; i < sharers; ++i) add(sum, sums[i][at]);
      window.finish(sum);
      y[index] = sum;
    }
    __syncthreads();
  }
}

template <int lanes>
__global__ void __launch_bounds__(threads, 2)
    backward_kernel(Pool2dShape s, const Pack<float, lanes>* __restrict__ dy,
                    Pack<float, lanes>* __restrict__ dx) {
  const int64_t packs = s.c / lanes;
  for_each_index(s.n * s.h * s.w * packs, [&](int64_t index) {
    const Place p(index, s.h, s.w, packs);
    const Range rows = windows_around(p.row + s.pad_top, s.pool_h, s.stride_h, s.oh);
    const Range columns = windows_around(p.column + s.pad_left, s.pool_w, s.stride_w, s.ow);
    Pack<float, lanes> sum{};
    for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
      const Range r = positions_inside(oh * s.stride_h - s.pad_top, s.pool_h, s.h);
      for (int64_t ow = columns.begin; ow < columns.end; ++ow) {
        const Range q = positions_inside(ow * s.stride_w - s.pad_left, s.pool_w, s.w);
        const float share = 1.0f / static_cast<float>((r.end - r.begin) * (q.end - q.begin));
        const Pack<float, lanes> gradient = dy[((p.n * s.oh + oh) * s.ow + ow) * packs + p.pack];
#pragma unroll
        for (int l = 0; l < lanes; ++l) sum.lane[l] = fmaf(gradient.lane[l], share, sum.lane[l]);
      }
    }
    dx[index] = sum;
  });
}

template <int lanes>
constexpr const char* variant = lanes == 4 ? " (4 channels)" : " (1 channel)";
template <int lanes>
const KernelOf forward{"avg_pool2d", forward_kernel<lanes>, threads, variant<lanes>};
template <int lanes>
const KernelOf shared_forward{"avg_pool2d_shared", shared_forward_kernel<lanes>, threads,
                              variant<lanes>};
template <int lanes>
const KernelOf backward{"avg_pool2d_backward", backward_kernel<lanes>, threads, variant<lanes>};

bool fours(const Pool2dShape& s, const float* a, const float* b) {
  return s.c % 4 == 0 && aligned_to_four(a) && aligned_to_four(b);
}

template <int lanes>
void launch_forward(const Pool2dShape& s, const float* x, float* y) {
  constexpr int64_t most_alone = 32;  // pixels of a window
  const int64_t results = s.n * s.oh * s.ow * (s.c / lanes);
  if (s.pool_h * s.pool_w > most_alone && s.pool_h > 1) {
    shared_forward<lanes>(grid_for(results, shared_windows), s, packed<lanes>(x), packed<lanes>(y));
  } else {
    forward<lanes>(grid_for(results, threads), s, packed<lanes>(x), packed<lanes>(y));
  }
}

template <int lanes>
void launch_backward(const Pool2dShape& s, const float* dy, float* dx) {
  backward<lanes>(grid_for(s.n * s.h * s.w * (s.c / lanes), threads), s, packed<lanes>(dy),
                  packed<lanes>(dx));
}

}  // namespace

void avg_pool2d(const Pool2dShape& s, const float* x, float* y) {
  if (s.n == 0) return;
  (fours(s, x, y) ? launch_forward<4> : launch_forward<1>)(s, x, y);
}

void avg_pool2d_backward(const Pool2dShape& s, const float* dy, float* dx) {
  if (s.n == 0) return;
  (fours(s, dy, dx) ? launch_backward<4> : launch_backward<1>)(s, dy, dx);
}

}  // namespace pyconv::cuda
