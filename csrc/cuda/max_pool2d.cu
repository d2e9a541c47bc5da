// Max pooling, forward and backward.
//
//   max_pool2d           y = max over the window, argmax = where    overwrites y, argmax
//   max_pool2d_backward  dx = dy at the argmax, else 0              overwrites dx
//
// x [n, h, w, c], y, dy and argmax [n, oh, ow, c]; argmax counts the window's positions row by row,
// in a uint8_t or, for windows of more than 256 positions, an int32_t. The first maximum wins; a
// NaN wins over every number and the first NaN over later ones; padding never wins.
//
// A thread computes one pixel of the result, in one channel or four. Backward it looks for the
// windows that chose its pixel, so nothing is added to memory, and gradients add up in one order.
#include "images.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;

// `small`: all windows are 2x2 and none reaches out of the image, so the loops have no conditions.
template <class Index, int lanes, bool small>
__global__ void __launch_bounds__(threads, 4)
    forward_kernel(Pool2dShape s, const Pack<float, lanes>* __restrict__ x,
                   Pack<float, lanes>* __restrict__ y, Pack<Index, lanes>* __restrict__ argmax) {
  const int64_t packs = s.c / lanes;
  for_each_index(s.n * s.oh * s.ow * packs, [&](int64_t index) {
    const Place p(index, s.oh, s.ow, packs);
    const int64_t top = p.row * s.stride_h - s.pad_top, left = p.column * s.stride_w - s.pad_left;
    const Range rows = small ? Range{0, 2} : positions_inside(top, s.pool_h, s.h);
    const Range columns = small ? Range{0, 2} : positions_inside(left, s.pool_w, s.w);
    const int pool_w = small ? 2 : static_cast<int>(s.pool_w);
    const auto first = static_cast<Index>(rows.begin * pool_w + columns.begin);
    Pack<float, lanes> best;
    Pack<Index, lanes> where;
#pragma unroll
    for (int l = 0; l < lanes; ++l) best.lane[l] = -INFINITY, where.lane[l] = first;
#pragma unroll
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const Pack<float, lanes>* const line =
          x + ((p.n * s.h + top + r) * s.w + left) * packs + p.pack;
#pragma unroll
      for (int64_t q = columns.begin; q < columns.end; ++q) {
        const Pack<float, lanes> value = line[q * packs];
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
          // Greater, or the first NaN.
          if (!(value.lane[l] <= best.lane[l]) && best.lane[l] == best.lane[l]) {
            best.lane[l] = value.lane[l];
            where.lane[l] = static_cast<Index>(r * pool_w + q);
          }
        }
      }
    }
    y[index] = best;
    argmax[index] = where;
  });
}

template <class Index, int lanes>
__global__ void __launch_bounds__(threads, 2)
    backward_kernel(Pool2dShape s, const Pack<float, lanes>* __restrict__ dy,
                    const Pack<Index, lanes>* __restrict__ argmax,
                    Pack<float, lanes>* __restrict__ dx) {
  const int64_t packs = s.c / lanes;
  // A gradient alone is taken as it is: 0 + -0 would be 0.
  const bool overlapping = s.stride_h < s.pool_h || s.stride_w < s.pool_w;
  for_each_index(s.n * s.h * s.w * packs, [&](int64_t index) {
    const Place p(index, s.h, s.w, packs);
    const int64_t ih = p.row + s.pad_top, iw = p.column + s.pad_left;
    const Range rows = windows_around(ih, s.pool_h, s.stride_h, s.oh);
    const Range columns = windows_around(iw, s.pool_w, s.stride_w, s.ow);
    Pack<float, lanes> sum{};
    for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
      const int64_t line = (p.n * s.oh + oh) * s.ow;
      const int64_t line_position = (ih - oh * s.stride_h) * s.pool_w;
      for (int64_t ow = columns.begin; ow < columns.end; ++ow) {
        const int position = static_cast<int>(line_position + iw - ow * s.stride_w);
        const int64_t from = (line + ow) * packs + p.pack;
        const Pack<Index, lanes> winner = argmax[from];
        const Pack<float, lanes> gradient = dy[from];
#pragma unroll
        for (int l = 0; l < lanes; ++l) {
          if (static_cast<int>(winner.lane[l]) == position)
            sum.lane[l] = overlapping ? sum.lane[l] + gradient.lane[l] : gradient.lane[l];
        }
      }
    }
    dx[index] = sum;
  });
}

template <class Index, int lanes>
std::string variant() {
  return std::string(sizeof(Index) == 1 ? " (" : " (large windows, ") +
         (lanes == 4 ? "4 channels)" : "1 channel)");
}

template <class Index, int lanes>
const KernelOf forward{"max_pool2d", forward_kernel<Index, lanes, false>, threads,
                       variant<Index, lanes>()};
template <int lanes>
const KernelOf forward_2x2{"max_pool2d_2x2", forward_kernel<uint8_t, lanes, true>, threads,
                           variant<uint8_t, lanes>()};
template <class Index, int lanes>
const KernelOf backward{"max_pool2d_backward", backward_kernel<Index, lanes>, threads,
                        variant<Index, lanes>()};

bool uint8_argmax(const Pool2dShape& s) { return s.pool_h * s.pool_w <= max_uint8_window; }

bool small_windows(const Pool2dShape& s) {
  return s.pool_h == 2 && s.pool_w == 2 && s.pad_top == 0 && s.pad_left == 0 &&
         (s.oh - 1) * s.stride_h + 2 <= s.h && (s.ow - 1) * s.stride_w + 2 <= s.w;
}

// Whether channels can be accessed by four.
template <class Index>
bool fours(const Pool2dShape& s, const float* a, const float* b, const Index* argmax) {
  return s.c % 4 == 0 && aligned_to_four(a) && aligned_to_four(b) && aligned_to_four(argmax);
}

template <int lanes, class Index>
void launch_forward(const Pool2dShape& s, const float* x, float* y, Index* argmax) {
  const dim3 grid = grid_for(s.n * s.oh * s.ow * (s.c / lanes), threads);
  if constexpr (sizeof(Index) == 1) {
    if (small_windows(s)) {
      forward_2x2<lanes>(grid, s, packed<lanes>(x), packed<lanes>(y), packed<lanes>(argmax));
      return;
    }
  }
  forward<Index, lanes>(grid, s, packed<lanes>(x), packed<lanes>(y), packed<lanes>(argmax));
}

template <int lanes, class Index>
void launch_backward(const Pool2dShape& s, const float* dy, const Index* argmax, float* dx) {
  const dim3 grid = grid_for(s.n * s.h * s.w * (s.c / lanes), threads);
  backward<Index, lanes>(grid, s, packed<lanes>(dy), packed<lanes>(argmax), packed<lanes>(dx));
}

template <class Index>
void choose_forward(const Pool2dShape& s, const float* x, float* y, Index* argmax) {
  if (s.n * s.oh * s.ow * s.c == 0) return;
  const auto launch = fours(s, x, y, argmax) ? launch_forward<4, Index> : launch_forward<1, Index>;
  launch(s, x, y, argmax);
}

template <class Index>
void choose_backward(const Pool2dShape& s, const float* dy, const Index* argmax, float* dx) {
  if (s.n * s.h * s.w * s.c == 0) return;
  const auto launch =
      fours(s, dy, dx, argmax) ? launch_backward<4, Index> : launch_backward<1, Index>;
  launch(s, dy, argmax, dx);
}

}  // namespace

void max_pool2d(const Pool2dShape& s, const float* x, float* y, void* argmax) {
  if (uint8_argmax(s)) {
    choose_forward(s, x, y, static_cast<uint8_t*>(argmax));
  } else {
    choose_forward(s, x, y, static_cast<int32_t*>(argmax));
  }
}

void max_pool2d_backward(const Pool2dShape& s, const float* dy, const void* argmax, float* dx) {
  if (uint8_argmax(s)) {
    choose_backward(s, dy, static_cast<const uint8_t*>(argmax), dx);
  } else {
    choose_backward(s, dy, static_cast<const int32_t*>(argmax), dx);
  }
}

}  // namespace pyconv::cuda
