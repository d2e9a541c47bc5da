// Dense layer, forward and backward: a 1x1 convolution of images of one pixel.
//
//   dense                   y  = relu(x * w + b)      overwrites y
//   dense_backward_data     dx = dy * w^T             overwrites dx
//   dense_backward_weights  dw = x^T * dy, db         overwrites dw, db
#include "launch.cuh"

namespace pyconv::cuda {

namespace {

Conv2dShape as_conv2d(const DenseShape& s) {
  Conv2dShape c{};
  c.n = s.n, c.h = 1, c.w = 1, c.c = s.in;
  c.kh = 1, c.kw = 1;
  c.oh = 1, c.ow = 1, c.oc = s.out;
  c.stride_h = 1, c.stride_w = 1, c.dilation_h = 1, c.dilation_w = 1;
  c.groups = 1;
  return c;
}

}  // namespace

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

}  // namespace pyconv::cuda
