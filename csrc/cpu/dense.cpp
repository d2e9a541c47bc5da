// Dense layer, forward and backward.
//
//   dense                   y  = relu(x * w + b)      overwrites y
//   dense_backward_data     dx = dy * w^T             overwrites dx
//   dense_backward_weights  dw = x^T * dy, db         overwrites dw, db
//
// x [n, in], w [in, out], y and dy [n, out]. A dense layer is a 1x1 convolution over one image that
// has the batch as its rows, and that is how it runs.
#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

static Conv2dShape as_conv2d(const DenseShape& s) {
  return {.n = s.n > 0 ? 1 : 0,
          .h = s.n,
          .w = 1,
          .c = s.in,
          .kh = 1,
          .kw = 1,
          .oh = s.n,
          .ow = 1,
          .oc = s.out,
          .stride_h = 1,
          .stride_w = 1,
          .pad_top = 0,
          .pad_left = 0,
          .dilation_h = 1,
          .dilation_w = 1,
          .groups = 1,
          .bfloat16 = s.bfloat16};
}

void dense(const DenseShape& s, Activation activation, const float* x, const float* w,
           const float* b, float* y) {
  conv2d(as_conv2d(s), activation, x, w, b, y);
}

void dense_backward_data(const DenseShape& s, Activation activation, const float* dy,
                         const float* y, const float* w, float* dx) {
  conv2d_backward_data(as_conv2d(s), activation, dy, y, w, dx);
}

void dense_backward_weights(const DenseShape& s, Activation activation, const float* dy,
                            const float* y, const float* x, float* dw, float* db) {
  conv2d_backward_weights(as_conv2d(s), activation, dy, y, x, dw, db);
}

}  // namespace pyconv::cpu::PYCONV_ISA
