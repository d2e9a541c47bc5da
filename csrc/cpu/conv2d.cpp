// 2-D convolution, forward and backward: which algorithm does what.
//
//   conv2d                   y  = relu(conv(x, w) + b)           overwrites y
//   conv2d_backward_data     dx = conv^T(dy, w)                  overwrites dx
//   conv2d_backward_weights  dw = x * dy, db = sum dy            overwrites dw, db
//
// x [n, h, w, c], w [kh, kw, c / groups, oc], y and dy [n, oh, ow, oc]. With a fused ReLU, dy
// counts where y > 0 only.
//
// The choice depends on the shape and the math mode, never on the machine's load or threads: the
// same call gives the same bits.
#include "conv2d.hpp"

namespace pyconv::cpu::PYCONV_ISA {

// To begin and end a loop of several threads takes as long as some ten thousand multiply-adds.
static bool is_small(const Conv2dShape& s) {
  constexpr int64_t least = 64 * 1024;
  return s.n * s.oh * s.ow * s.oc * s.kh * s.kw * (s.c / s.groups) < least;
}

void conv2d(const Conv2dShape& s, Activation activation, const float* x, const float* w,
            const float* b, float* y) {
  const OneThread alone(is_small(s));
  if (const int side = winograd_side(s, s.oh, s.ow); side > 0) {
    conv2d_winograd(side, s, activation, x, w, b, y);
  } else if (depthwise_fits(s)) {
    conv2d_depthwise(s, activation, x, w, b, y);
  } else {
    conv2d_direct(s, activation, x, w, b, y);
  }
}

void conv2d_backward_data(const Conv2dShape& s, Activation activation, const float* dy,
                          const float* y, const float* w, float* dx) {
  const OneThread alone(is_small(s));
  if (const int side = winograd_side_backward_data(s); side > 0) {
    conv2d_winograd_backward_data(side, s, activation, dy, y, w, dx);
  } else if (depthwise_fits(s)) {
    conv2d_depthwise_backward_data(s, activation, dy, y, w, dx);
  } else {
    conv2d_direct_backward_data(s, activation, dy, y, w, dx);
  }
}

void conv2d_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                             const float* y, const float* x, float* dw, float* db) {
  const OneThread alone(is_small(s));
  if (const int side = winograd_side_backward_weights(s); side > 0) {
    conv2d_winograd_backward_weights(side, s, activation, dy, y, x, dw, db);
  } else if (depthwise_fits(s)) {
    conv2d_depthwise_backward_weights(s, activation, dy, y, x, dw, db);
  } else {
    conv2d_direct_backward_weights(s, activation, dy, y, x, dw, db);
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
