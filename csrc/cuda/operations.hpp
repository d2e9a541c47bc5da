// The CUDA kernels. Contracts are in ../ops.hpp; all pointers are to device memory, and everything
// runs on runtime.hpp's stream.
#pragma once

#include "../ops.hpp"

namespace pyconv::cuda {

void conv2d(const Conv2dShape& shape, Activation activation, const float* x, const float* w,
            const float* b, float* y);
void conv2d_backward_data(const Conv2dShape& shape, Activation activation, const float* dy,
                          const float* y, const float* w, float* dx);
void conv2d_backward_weights(const Conv2dShape& shape, Activation activation, const float* dy,
                             const float* y, const float* x, float* dw, float* db);

void dense(const DenseShape& shape, Activation activation, const float* x, const float* w,
           const float* b, float* y);
void dense_backward_data(const DenseShape& shape, Activation activation, const float* dy,
                         const float* y, const float* w, float* dx);
void dense_backward_weights(const DenseShape& shape, Activation activation, const float* dy,
                            const float* y, const float* x, float* dw, float* db);

void max_pool2d(const Pool2dShape& shape, const float* x, float* y, void* argmax);
void max_pool2d_backward(const Pool2dShape& shape, const float* dy, const void* argmax, float* dx);

void avg_pool2d(const Pool2dShape& shape, const float* x, float* y);
void avg_pool2d_backward(const Pool2dShape& shape, const float* dy, float* dx);
void pad2d(const Pad2dShape& shape, const float* x, float* y);

void relu(int64_t size, const float* x, float* y);
void relu_backward(int64_t size, const float* dy, const float* y, float* dx);
void round_bfloat16(int64_t size, const float* x, float* y);
void activate(int64_t size, Pointwise function, float slope, const float* x, float* y);
void activate_backward(int64_t size, Pointwise function, float slope, const float* dy,
                       const float* y, float* dx);
void dropout(int64_t size, const Dropout& dropout, const float* x, float* y);

void batch_norm(int64_t rows, int64_t c, const float* x, const float* gamma, const float* beta,
                const float* mean, const float* variance, double epsilon, float* y);
void batch_norm_training(int64_t rows, int64_t c, const float* x, const float* gamma,
                         const float* beta, double momentum, double epsilon, float* moving_mean,
                         float* moving_variance, float* mean, float* inverse, float* y);
void batch_norm_backward(int64_t rows, int64_t c, const float* dy, const float* x,
                         const float* gamma, const float* mean, const float* inverse, float* dx,
                         float* dgamma, float* dbeta);

void softmax(int64_t n, int64_t k, const float* x, float* y);
void softmax_backward(int64_t n, int64_t k, const float* dy, const float* y, float* dx);
void softmax_cross_entropy(int64_t n, int64_t k, int64_t batch, const float* logits,
                           const float* labels, float* loss, float* probabilities, float* dlogits);

void sgd_step(int64_t size, float* w, const float* dw, float* velocity, Scalar<float> learning_rate,
              float momentum, bool nesterov);
void rmsprop_step(int64_t size, float* w, const float* dw, float* velocity,
                  Scalar<float> learning_rate, float rho, float rest, float epsilon);
void adam_step(int64_t size, float* w, const float* dw, float* m, float* v,
               Scalar<float> learning_rate, Scalar<uint64_t> step, double beta_1, double beta_2,
               float epsilon);

void conv2d_pool(const ConvPoolShape& shape, const Dropout& dropout, const float* x, const float* w,
                 const float* b, float* y, uint8_t* winner);
void conv2d_pool_backward_data(const ConvPoolShape& shape, float scale, const float* dy,
                               const uint8_t* winner, const float* w, float* dx);
void conv2d_pool_backward_weights(const ConvPoolShape& shape, float scale, const float* dy,
                                  const uint8_t* winner, const float* x, float* dw, float* db);
void gather_floats(int64_t n, int64_t row, int64_t source_rows, const float* source,
                   const int64_t* indices, float scale, float* out);
void gather_bytes(int64_t n, int64_t row, int64_t source_rows, const uint8_t* source,
                  const int64_t* indices, float scale, float* out);

}  // namespace pyconv::cuda
