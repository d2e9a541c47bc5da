// The operations of pyconv: the shapes they take and the one table that every backend fills.
//
// Layouts: activations NHWC, convolution weights HWIO, everything float32 and dense in memory.
// Outputs are overwritten, never accumulated into, unless a comment says otherwise. Whoever calls
// through this table (csrc/bindings) has checked every shape and every pointer; kernels check
// nothing.
#pragma once

#include <cstdint>

namespace pyconv {

enum class Activation : int { none, relu };
// Functions that are applied element by element, by themselves. leaky_relu has a slope.
enum class Pointwise : int { sigmoid, tanh, leaky_relu, softplus };

// A convolution  y[n, oh, ow, oc] = b[oc] + sum x[n, ih, iw, ic] * w[kh, kw, ic, oc]  with
// ih = oh * stride_h - pad_top + kh * dilation_h (iw alike); taps outside the image count as zero.
// With groups > 1, ic and oc run within one group.
struct Conv2dShape {
  int64_t n, h, w, c;  // x: [n, h, w, c]
  int64_t kh, kw;      // weights: [kh, kw, c / groups, oc]
  int64_t oh, ow, oc;  // y: [n, oh, ow, oc]
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;  // bottom and right follow from oh and ow
  int64_t dilation_h, dilation_w;
  int32_t groups;
  // Whether x, or dy, and w are numbers of bfloat16: then a kernel may multiply them as such.
  bool bfloat16 = false;
};
// nvcc keeps no larger parameters of a kernel in registers.
static_assert(sizeof(Conv2dShape) <= 128);

struct Pool2dShape {
  int64_t n, h, w, c;  // x: [n, h, w, c]
  int64_t pool_h, pool_w;
  int64_t oh, ow;  // y: [n, oh, ow, c]
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;
};

// y[n, i, j] = x[n, i - pad_top, j - pad_left], zero outside x. Negative padding crops.
struct Pad2dShape {
  int64_t n, h, w, c;  // x: [n, h, w, c]
  int64_t oh, ow;      // y: [n, oh, ow, c]
  int64_t pad_top, pad_left;
};

// y[n, out] = x[n, in] * w[in, out] + b
struct DenseShape {
  int64_t n, in, out;
  bool bfloat16 = false;  // as above
};

// A number that the caller knows, or that will stand in the device's memory when the kernel runs: a
// captured step is replayed with other values.
template <class T>
struct Scalar {
  T value;
  const T* pointer;  // if not null, it counts and value does not
};

// Dropout of the elements whose 32-bit random number is below threshold, the others times scale.
// Element i takes word i % 4 of Philox4x32-10 with key = seed and counter = (first + i / 4,
// offset): part of an array, from its element 4 * first on, is dropped as the whole of it would be.
struct Dropout {
  float scale;
  uint64_t threshold;
  uint64_t seed;
  Scalar<uint64_t> offset;
  uint64_t first;
};

// A convolution with ReLU, 2x2 max pooling with strides of 2 and dropout behind it, as one kernel.
// Rows and columns of the convolution that no whole window covers are not computed.
struct ConvPoolShape {
  Conv2dShape conv;
  int64_t ph, pw;  // pooled output: [n, ph, pw, oc]
};

// What the fused pooling writes for each pooled value: the position 0 to 3 of the maximum in its
// window, row-major, or this, where neither ReLU nor dropout let a gradient through.
constexpr uint8_t pool_dead = 4;

// Where the winner of each pooling window stood, as its row-major position in the window:
// uint8_t while the window has at most 256 positions, int32_t beyond.
constexpr int64_t max_uint8_window = 256;

struct Operations {
  const char* isa;   // the instruction set that the kernels behind this table were compiled for
  int vector_lanes;  // floats in a vector register of that path

  // Convolution. b may be null. With Activation::relu the backward passes need the forward output
  // y and take dy where y > 0, zero elsewhere; y may be null otherwise. db may be null.
  void (*conv2d)(const Conv2dShape&, Activation, const float* x, const float* w, const float* b,
                 float* y);
  void (*conv2d_backward_data)(const Conv2dShape&, Activation, const float* dy, const float* y,
                               const float* w, float* dx);
  void (*conv2d_backward_weights)(const Conv2dShape&, Activation, const float* dy, const float* y,
                                  const float* x, float* dw, float* db);

  void (*dense)(const DenseShape&, Activation, const float* x, const float* w, const float* b,
                float* y);
  void (*dense_backward_data)(const DenseShape&, Activation, const float* dy, const float* y,
                              const float* w, float* dx);
  void (*dense_backward_weights)(const DenseShape&, Activation, const float* dy, const float* y,
                                 const float* x, float* dw, float* db);

  // Max pooling. The first maximum wins, NaN wins over numbers, padding never wins. On the CPU
  // argmax may be null where no backward pass will follow.
  void (*max_pool2d)(const Pool2dShape&, const float* x, float* y, void* argmax);
  void (*max_pool2d_backward)(const Pool2dShape&, const float* dy, const void* argmax, float* dx);

  // The mean of what a window has in the image: padding does not count.
  void (*avg_pool2d)(const Pool2dShape&, const float* x, float* y);
  void (*avg_pool2d_backward)(const Pool2dShape&, const float* dy, float* dx);

  // Zeros around an image; its gradient is the same with the sizes swapped and negative padding.
  void (*pad2d)(const Pad2dShape&, const float* x, float* y);

  // Element by element; output and input may be the same array.
  void (*relu)(int64_t size, const float* x, float* y);
  void (*relu_backward)(int64_t size, const float* dy, const float* y, float* dx);
  void (*activate)(int64_t size, Pointwise, float slope, const float* x, float* y);
  void (*activate_backward)(int64_t size, Pointwise, float slope, const float* dy, const float* y,
                            float* dx);
  void (*dropout)(int64_t size, const Dropout&, const float* x, float* y);
  void (*round_bfloat16)(int64_t size, const float* x, float* y);

  // Batch normalization of rows of c channels, y = gamma * (x - mean) / sqrt(variance + epsilon) +
  // beta, with the mean and variance given, or those of the rows, of which there is at least one;
  // then it also updates the moving averages. gamma (1) and beta (0) may be null; inverse is
  // 1 / sqrt(variance + epsilon). y may be x, and dx may be dy.
  void (*batch_norm)(int64_t rows, int64_t c, const float* x, const float* gamma, const float* beta,
                     const float* mean, const float* variance, double epsilon, float* y);
  void (*batch_norm_training)(int64_t rows, int64_t c, const float* x, const float* gamma,
                              const float* beta, double momentum, double epsilon,
                              float* moving_mean, float* moving_variance, float* mean,
                              float* inverse, float* y);
  void (*batch_norm_backward)(int64_t rows, int64_t c, const float* dy, const float* x,
                              const float* gamma, const float* mean, const float* inverse,
                              float* dx, float* dgamma, float* dbeta);

  // Rows of k values. dlogits is the gradient of the sum of the losses, divided by batch.
  void (*softmax)(int64_t n, int64_t k, const float* x, float* y);
  void (*softmax_backward)(int64_t n, int64_t k, const float* dy, const float* y, float* dx);
  void (*softmax_cross_entropy)(int64_t n, int64_t k, int64_t batch, const float* logits,
                                const float* labels, float* loss, float* probabilities,
                                float* dlogits);

  // One optimizer step over `size` parameters, in place; rest = 1 - rho. Adam's step counts from 1.
  void (*sgd_step)(int64_t size, float* w, const float* dw, float* velocity,
                   Scalar<float> learning_rate, float momentum, bool nesterov);
  void (*rmsprop_step)(int64_t size, float* w, const float* dw, float* velocity,
                       Scalar<float> learning_rate, float rho, float rest, float epsilon);
  void (*adam_step)(int64_t size, float* w, const float* dw, float* m, float* v,
                    Scalar<float> learning_rate, Scalar<uint64_t> step, double beta_1,
                    double beta_2, float epsilon);

  // Convolution, ReLU, pooling and dropout as one. winner is [n, ph, pw, oc], and on the CPU null
  // where there is no dropout and no backward pass will follow; dy has the pooled shape; scale is
  // dropout's.
  void (*conv2d_pool)(const ConvPoolShape&, const Dropout&, const float* x, const float* w,
                      const float* b, float* y, uint8_t* winner);
  void (*conv2d_pool_backward_data)(const ConvPoolShape&, float scale, const float* dy,
                                    const uint8_t* winner, const float* w, float* dx);
  void (*conv2d_pool_backward_weights)(const ConvPoolShape&, float scale, const float* dy,
                                       const uint8_t* winner, const float* x, float* dw, float* db);

  // Two layers at the beginning of a network: conv2d_pool_backward_data of the second, then
  // conv2d_backward_weights of the first on its result, dw and db, with the same numbers up to
  // rounding. What lies between them is not written out. y is the first's output and x its input;
  // null on CUDA.
  void (*conv2d_pool_backward_through)(const ConvPoolShape& second, float scale, const float* dy,
                                       const uint8_t* winner, const float* w,
                                       const Conv2dShape& first, Activation, const float* y,
                                       const float* x, float* dw, float* db);

  // Data movement of the CUDA backend; null on the CPU.
  // out[i] = scale * source[indices[i]], rows of `row` values of type float or uint8_t. The indices
  // are clipped to [0, source_rows).
  void (*gather_floats)(int64_t n, int64_t row, int64_t source_rows, const float* source,
                        const int64_t* indices, float scale, float* out);
  void (*gather_bytes)(int64_t n, int64_t row, int64_t source_rows, const uint8_t* source,
                       const int64_t* indices, float scale, float* out);

  // The machine's ceiling for this path: runs `iterations` rounds of independent multiply-adds on
  // every thread and returns the floating-point operations done. Null on CUDA.
  double (*peak_flops)(int64_t iterations);
};

}  // namespace pyconv
