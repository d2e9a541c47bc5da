// Max pooling, forward and backward.
//
//   max_pool2d           y = max over the window, argmax = where    overwrites y, argmax
//   max_pool2d_backward  dx = dy at the argmax, else 0              overwrites dx
//
// x [n, h, w, c], y, dy and argmax [n, oh, ow, c]; argmax counts the window's positions row by row,
// in a uint8_t or, for windows of more than 256 positions, an int32_t, and may be null. The first
// maximum wins; a NaN wins over every number and the first NaN over later ones; padding never wins.
#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// The part of a window that lies in the image: positions [begin, end) along one axis.
struct Clip {
  int64_t begin, end;
};
Clip clip(int64_t start, int64_t pool, int64_t size) {
  return {max(0, -start), min(pool, size - start)};
}

// The maxima of V vectors of channels, the last of which may be a part of one, stay in registers
// while the window goes by.
template <int V>
void forward_vectors(const Pool2dShape& s, const Clip& rows, const Clip& cols, const float* x,
                     int64_t channels, float* y, uint8_t* argmax) {
  const int64_t last = channels - (V - 1) * lanes;
  vec best[V], at[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    best[v] = load_part(x + v * lanes, v == V - 1 ? last : lanes);
    at[v] = broadcast(static_cast<float>(rows.begin * s.pool_w + cols.begin));
  }
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const float* pixel = x + (i - rows.begin) * s.w * s.c;
    for (int64_t j = cols.begin; j < cols.end; ++j, pixel += s.c) {
      // The first position meets itself, which changes nothing.
      const vec position = broadcast(static_cast<float>(i * s.pool_w + j));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const vec value = load_part(pixel + v * lanes, v == V - 1 ? last : lanes);
        keep_maximum(value, position, best[v], at[v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    store_part(y + v * lanes, best[v], v == V - 1 ? last : lanes);
    if (argmax == nullptr) continue;
    store_bytes_n(argmax + v * lanes, at[v], v == V - 1 ? last : lanes);
  }
}

void forward_pixel(const Pool2dShape& s, const float* image, int64_t top, int64_t left, float* y,
                   uint8_t* argmax) {
  const Clip rows = clip(top, s.pool_h, s.h), cols = clip(left, s.pool_w, s.w);
  const float* const x = image + ((top + rows.begin) * s.w + left + cols.begin) * s.c;
  int64_t c = 0;
  for (; c + 4 * lanes <= s.c; c += 4 * lanes) {
    forward_vectors<4>(s, rows, cols, x + c, 4 * lanes, y + c, behind(argmax, c));
  }
  for (; c < s.c; c += lanes) {
    forward_vectors<1>(s, rows, cols, x + c, min(lanes, s.c - c), y + c, behind(argmax, c));
  }
}

// Positions that a byte cannot hold, nor a float beyond 2^24: channel by channel.
void forward_pixel(const Pool2dShape& s, const float* image, int64_t top, int64_t left, float* y,
                   int32_t* argmax) {
  const Clip rows = clip(top, s.pool_h, s.h), cols = clip(left, s.pool_w, s.w);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    for (int64_t j = cols.begin; j < cols.end; ++j) {
      const float* const x = image + ((top + i) * s.w + left + j) * s.c;
      const bool first = i == rows.begin && j == cols.begin;
      const int32_t position = static_cast<int32_t>(i * s.pool_w + j);
      for (int64_t c = 0; c < s.c; ++c) {
        // Greater, or the first NaN: not (x <= y) is true for both, and for any x once y is NaN,
        // which the second test rules out.
        const bool wins = first | (!(x[c] <= y[c]) & (y[c] == y[c]));
        y[c] = wins ? x[c] : y[c];
        if (argmax != nullptr) argmax[c] = wins ? position : argmax[c];
      }
    }
  }
}

template <class Index>
void forward(const Pool2dShape& s, const float* x, float* y, Index* argmax) {
  parallel_for(num_threads(), s.n * s.oh, [&](int64_t item, int) {
    const int64_t n = item / s.oh, oh = item % s.oh;
    for (int64_t ow = 0; ow < s.ow; ++ow) {
      const int64_t at = (item * s.ow + ow) * s.c;
      forward_pixel(s, x + n * s.h * s.w * s.c, oh * s.stride_h - s.pad_top,
                    ow * s.stride_w - s.pad_left, y + at, behind(argmax, at));
    }
  });
}

// dx = dy where the argmax is this position, else 0. The pointers are __restrict since an array of
// uint8_t could otherwise be anything's bytes, and the loop would not be vectorised.
template <class Index>
void scatter(int64_t channels, int32_t position, const float* __restrict dy,
             const Index* __restrict argmax, float* __restrict dx) {
  for (int64_t c = 0; c < channels; ++c) {
    dx[c] = static_cast<int32_t>(argmax[c]) == position ? dy[c] : 0.0f;
  }
}

// Windows that do not overlap: every element of dx belongs to at most one window and is written
// once. An item owns the input rows from the top of its window to the top of the next.
template <class Index>
void backward_disjoint(const Pool2dShape& s, const float* dy, const Index* argmax, float* dx) {
  parallel_for(num_threads(), s.n * s.oh, [&](int64_t item, int) {
    const int64_t n = item / s.oh, oh = item % s.oh;
    const int64_t top = oh * s.stride_h - s.pad_top;
    const int64_t first = oh == 0 ? 0 : max(0, top);
    const int64_t last = oh == s.oh - 1 ? s.h : min(s.h, top + s.stride_h);
    for (int64_t ih = first; ih < last; ++ih) {
      float* const row = dx + (n * s.h + ih) * s.w * s.c;
      const int64_t i = ih - top;
      int64_t done = 0;  // pixels of this row that are written
      if (i >= 0 && i < s.pool_h) {
        for (int64_t ow = 0; ow < s.ow; ++ow) {
          const int64_t left = ow * s.stride_w - s.pad_left;
          const Clip cols = clip(left, s.pool_w, s.w);
          const int64_t at = (item * s.ow + ow) * s.c;
          for (; done < left + cols.begin; ++done) {
            for (int64_t c = 0; c < s.c; ++c) row[done * s.c + c] = 0.0f;
          }
          for (int64_t j = cols.begin; j < cols.end; ++j, ++done) {
            scatter(s.c, static_cast<int32_t>(i * s.pool_w + j), dy + at, argmax + at,
                    row + done * s.c);
          }
        }
      }
      for (int64_t k = done * s.c; k < s.w * s.c; ++k) row[k] = 0.0f;
    }
  });
}

// Windows that overlap: gradients add up, window after window. Images and channels are independent.
template <class Index>
void backward_overlapping(const Pool2dShape& s, const float* dy, const Index* argmax, float* dx) {
  constexpr int64_t channel_block = 64;
  const int64_t blocks = ceil_div(s.c, channel_block);
  parallel_for(num_threads(), s.n * blocks, [&](int64_t item, int) {
    const int64_t n = item / blocks, c0 = item % blocks * channel_block;
    const int64_t c1 = min(c0 + channel_block, s.c);
    float* const image = dx + n * s.h * s.w * s.c;
    for (int64_t pixel = 0; pixel < s.h * s.w; ++pixel) {
      for (int64_t c = c0; c < c1; ++c) image[pixel * s.c + c] = 0.0f;
    }
    for (int64_t oh = 0; oh < s.oh; ++oh) {
      for (int64_t ow = 0; ow < s.ow; ++ow) {
        const int64_t at = ((n * s.oh + oh) * s.ow + ow) * s.c;
        const int64_t top = oh * s.stride_h - s.pad_top, left = ow * s.stride_w - s.pad_left;
        for (int64_t c = c0; c < c1; ++c) {
          const int64_t ih = top + argmax[at + c] / s.pool_w;
          const int64_t iw = left + argmax[at + c] % s.pool_w;
          // The caller's argmax may hold anything.
          if (ih < 0 || ih >= s.h || iw < 0 || iw >= s.w) continue;
          image[(ih * s.w + iw) * s.c + c] += dy[at + c];
        }
      }
    }
  });
}

template <class Index>
void backward(const Pool2dShape& s, const float* dy, const Index* argmax, float* dx) {
  if (s.stride_h >= s.pool_h && s.stride_w >= s.pool_w) {
    backward_disjoint(s, dy, argmax, dx);
  } else {
    backward_overlapping(s, dy, argmax, dx);
  }
}

bool uint8_argmax(const Pool2dShape& s) { return s.pool_h * s.pool_w <= max_uint8_window; }

}  // namespace

void max_pool2d(const Pool2dShape& s, const float* x, float* y, void* argmax) {
  if (uint8_argmax(s)) {
    forward(s, x, y, static_cast<uint8_t*>(argmax));
  } else {
    forward(s, x, y, static_cast<int32_t*>(argmax));
  }
}

void max_pool2d_backward(const Pool2dShape& s, const float* dy, const void* argmax, float* dx) {
  if (uint8_argmax(s)) {
    backward(s, dy, static_cast<const uint8_t*>(argmax), dx);
  } else {
    backward(s, dy, static_cast<const int32_t*>(argmax), dx);
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
