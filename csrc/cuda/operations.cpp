#include "operations.hpp"

namespace pyconv::cuda {

extern const Operations operations;
const Operations operations = {
    .isa = "cuda",
    .vector_lanes = 32,
    .conv2d = conv2d,
    .conv2d_backward_data = conv2d_backward_data,
    .conv2d_backward_weights = conv2d_backward_weights,
    .dense = dense,
    .dense_backward_data = dense_backward_data,
    .dense_backward_weights = dense_backward_weights,
    .max_pool2d = max_pool2d,
    .max_pool2d_backward = max_pool2d_backward,
    .avg_pool2d = avg_pool2d,
    .avg_pool2d_backward = avg_pool2d_backward,
    .pad2d = pad2d,
    .relu = relu,
    .relu_backward = relu_backward,
    .activate = activate,
    .activate_backward = activate_backward,
    .dropout = dropout,
    .round_bfloat16 = round_bfloat16,
    .batch_norm = batch_norm,
    .batch_norm_training = batch_norm_training,
    .batch_norm_backward = batch_norm_backward,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .softmax_cross_entropy = softmax_cross_entropy,
    .sgd_step = sgd_step,
    .rmsprop_step = rmsprop_step,
    .adam_step = adam_step,
    .conv2d_pool = conv2d_pool,
    .conv2d_pool_backward_data = conv2d_pool_backward_data,
    .conv2d_pool_backward_weights = conv2d_pool_backward_weights,
    .conv2d_pool_backward_through = nullptr,
    .gather_floats = gather_floats,
    .gather_bytes = gather_bytes,
    .peak_flops = nullptr,
};

}  // namespace pyconv::cuda
