// The algorithms of convolution among which conv2d.cpp and conv2d_pool.cpp choose. Arguments and
// results are those of the operations of the same name in ../ops.hpp.
#pragma once

#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

// ReLU and max pooling of a window of four vectors, row by row, of which so many lanes count: what
// conv2d_pool writes, before dropout. winner may be null.
static inline void pool_window(vec v0, vec v1, vec v2, vec v3, int64_t count, float* y,
                               uint8_t* winner) {
  vec best = v0, at = zero();
  keep_maximum(v1, broadcast(1.0f), best, at);
  keep_maximum(v2, broadcast(2.0f), best, at);
  keep_maximum(v3, broadcast(3.0f), best, at);
  best = at_least(zero(), best);
  store_part(y, best, count);
  if (winner == nullptr) return;
  const vec dead = broadcast(static_cast<float>(pool_dead));
  store_bytes_n(winner, add(dead, where_positive(best, sub(at, dead))), count);
}

// Copies rows and columns of an image, of which some may lie in its padding and are zero then: the
// first is (top, left) of the image.
static inline void copy_padded(const Conv2dShape& s, const float* image, int64_t top, int64_t left,
                               int64_t rows, int64_t cols, float* to) {
  const int64_t begin = min(max(0, -left), cols);
  const int64_t end = max(begin, min(cols, s.w - left));
  for (int64_t row = top; row < top + rows; ++row, to += cols * s.c) {
    if (row < 0 || row >= s.h) {
      clear(to, cols * s.c);
      continue;
    }
    clear(to, begin * s.c);
    copy(to + begin * s.c, image + (row * s.w + left + begin) * s.c, (end - begin) * s.c);
    clear(to + end * s.c, (cols - end) * s.c);
  }
}
// Rows and columns that the windows of an image reach over, its padding included.
static inline int64_t padded_h(const Conv2dShape& s) {
  return (s.oh - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1;
}
static inline int64_t padded_w(const Conv2dShape& s) {
  return (s.ow - 1) * s.stride_w + (s.kw - 1) * s.dilation_w + 1;
}

// conv2d_direct.cpp and conv2d_direct_weights.cpp: any shape. Whether the forward pass begins with
// a copy of x with its padding, which it then multiplies like everything else.
bool direct_pads(const Conv2dShape& s);
void conv2d_direct(const Conv2dShape& s, Activation activation, const float* x, const float* w,
                   const float* b, float* y);
void conv2d_direct_backward_data(const Conv2dShape& s, Activation activation, const float* dy,
                                 const float* y, const float* w, float* dx);
void conv2d_direct_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                                    const float* y, const float* x, float* dw, float* db);

// conv2d_first.cpp: up to four channels, with groups and horizontal dilation of 1. What
// conv2d_direct does where it fits.
bool first_fits(const Conv2dShape& s);
void conv2d_first(const Conv2dShape& s, Activation activation, const float* x, const float* w,
                  const float* b, float* y);
void conv2d_first_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                                   const float* y, const float* x, float* dw, float* db);

// conv2d_last.cpp: up to four features of many channels, likewise where it fits and pays; the data
// gradient of a single tap.
bool last_fits(const Conv2dShape& s);
bool last_pays_forward(const Conv2dShape& s);
bool last_pays_weights(const Conv2dShape& s);
bool last_fits_data(const Conv2dShape& s);
void conv2d_last(const Conv2dShape& s, Activation activation, const float* x, const float* w,
                 const float* b, float* y);
void conv2d_last_backward_data(const Conv2dShape& s, Activation activation, const float* dy,
                               const float* y, const float* w, float* dx);
void conv2d_last_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                                  const float* y, const float* x, float* dw, float* db);

// conv2d_depthwise.cpp: as many groups as channels and filters.
bool depthwise_fits(const Conv2dShape& s);
void conv2d_depthwise(const Conv2dShape& s, Activation activation, const float* x, const float* w,
                      const float* b, float* y);
void conv2d_depthwise_backward_data(const Conv2dShape& s, Activation activation, const float* dy,
                                    const float* y, const float* w, float* dx);
void conv2d_depthwise_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                                       const float* y, const float* x, float* dw, float* db);

// conv2d_winograd.cpp: 3x3 with strides, dilation and groups of 1.
bool winograd_fits(const Conv2dShape& s);
// The side of the tiles of outputs to use it with, 4 or 6, where it fits and is expected to be
// faster than the direct algorithm, or as the math mode says; else 0. Forward for the first `rows`
// rows and `cols` columns of the output.
int winograd_side(const Conv2dShape& s, int64_t rows, int64_t cols);
int winograd_side_backward_data(const Conv2dShape& s);
int winograd_side_backward_weights(const Conv2dShape& s);
void conv2d_winograd(int tile_side, const Conv2dShape& s, Activation activation, const float* x,
                     const float* w, const float* b, float* y);
void conv2d_winograd_pool(int tile_side, const ConvPoolShape& s, const float* x, const float* w,
                          const float* b, float* y, uint8_t* winner);
void conv2d_winograd_backward_data(int tile_side, const Conv2dShape& s, Activation activation,
                                   const float* dy, const float* y, const float* w, float* dx);
void conv2d_winograd_backward_weights(int tile_side, const Conv2dShape& s, Activation activation,
                                      const float* dy, const float* y, const float* x, float* dw,
                                      float* db);

}  // namespace pyconv::cpu::PYCONV_ISA
