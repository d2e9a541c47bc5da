// The extension module of every backend: checks what Python hands over, calls the kernel.
//
// Every function writes into arrays that the caller has allocated (pyconv/kernels.py does). Shapes
// are checked here against one another completely, so that no kernel reads or writes out of bounds
// whatever comes from Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "array.hpp"
#include "backend.hpp"

namespace pyconv::bindings {

namespace {

using Pair = std::array<int64_t, 2>;
using Padding = std::array<int64_t, 4>;  // top, bottom, left, right

// No sum or product of two such parameters and array sizes overflows 64 bits.
constexpr int64_t largest_parameter = std::numeric_limits<int32_t>::max();

void require_range(const char* name, int64_t value, int64_t least) {
  if (value < least || value > largest_parameter) {
    throw py::value_error(std::string(name) + ": expected a value from " + std::to_string(least) +
                          " to " + std::to_string(largest_parameter) +
                          ". Received: " + std::to_string(value) + ".");
  }
}

int64_t require_positive(const Array& array, size_t axis, const char* what) {
  if (array.dim(axis) < 1) {
    throw py::value_error(std::string(array.name()) + ": expected at least one " + what +
                          ". Received shape " + to_text(array.shape()) + ".");
  }
  return array.dim(axis);
}

int64_t output_size(const char* axis, int64_t size, int64_t kernel, int64_t stride, int64_t before,
                    int64_t after, int64_t dilation) {
  const int64_t extent = dilation * (kernel - 1) + 1;
  const int64_t room = size + before + after - extent;
  if (room < 0) {
    throw py::value_error(std::string("the window does not fit: expected an input of at least ") +
                          std::to_string(extent) + " along the " + axis +
                          ", padding included. Received: " + std::to_string(size + before + after) +
                          ". Use a smaller kernel or padding='same'.");
  }
  return room / stride + 1;
}

void require_window(const Pair& strides, const Padding& padding, const Pair& dilation) {
  for (int64_t value : strides) require_range("strides", value, 1);
  for (int64_t value : padding) require_range("padding", value, 0);
  for (int64_t value : dilation) require_range("dilation_rate", value, 1);
}

Conv2dShape conv2d_shape(const Shape& x, const Array& w, const Pair& strides,
                         const Padding& padding, const Pair& dilation, int64_t groups,
                         bool bfloat16 = false) {
  require_window(strides, padding, dilation);
  require_range("groups", groups, 1);
  Conv2dShape s{};
  s.n = x[0], s.h = x[1], s.w = x[2], s.c = x[3];
  if (s.n < 0 || s.h < 1 || s.w < 1 || s.c < 1) {
    throw py::value_error(
        "x: expected shape (n, height, width, channels) with at least one row, "
        "column and channel. Received: " +
        to_text(x) + ".");
  }
  if (s.c % groups != 0) {
    throw py::value_error("groups: expected a divisor of the " + std::to_string(s.c) +
                          " input channels. Received: " + std::to_string(groups) + ".");
  }
  w.require({any, any, s.c / groups, any},
            "(kernel height, kernel width, input channels / groups, filters)");
  s.kh = require_positive(w, 0, "row");
  s.kw = require_positive(w, 1, "column");
  s.oc = require_positive(w, 3, "filter");
  if (s.oc % groups != 0) {
    throw py::value_error("groups: expected a divisor of the " + std::to_string(s.oc) +
                          " filters. Received: " + std::to_string(groups) + ".");
  }
  s.stride_h = strides[0], s.stride_w = strides[1];
  s.pad_top = padding[0], s.pad_left = padding[2];
  s.dilation_h = dilation[0], s.dilation_w = dilation[1];
  s.groups = static_cast<int32_t>(groups);
  s.bfloat16 = bfloat16;
  s.oh = output_size("height", s.h, s.kh, s.stride_h, padding[0], padding[1], s.dilation_h);
  s.ow = output_size("width", s.w, s.kw, s.stride_w, padding[2], padding[3], s.dilation_w);
  return s;
}

Shape conv2d_output(const Conv2dShape& s) { return {s.n, s.oh, s.ow, s.oc}; }

Shape four(const Array& array) { return array.require({any, any, any, any}, "four axes").shape(); }

// The forward output y, which a fused ReLU's backward pass needs.
Array activation_output(const py::object& object, bool relu, const Shape& shape) {
  if (!relu) return Array();
  if (object.is_none()) {
    throw py::value_error(
        "y: expected the forward pass's output, which activation='relu' needs in the "
        "backward pass. Received: None.");
  }
  Array y = input(object, "y");
  y.require(shape, "that of the output");
  return y;
}

Activation activation(bool relu) { return relu ? Activation::relu : Activation::none; }

// ---------------------------------------------------------------------------------------------

void conv2d(const py::object& x_, const py::object& w_, const py::object& b_, const py::object& y_,
            const Pair& strides, const Padding& padding, const Pair& dilation, int64_t groups,
            bool relu, bool bfloat16) {
  const Array x = input(x_, "x"), w = input(w_, "w"), b = optional_input(b_, "b");
  const Array y = output(y_, "out");
  const Conv2dShape s = conv2d_shape(four(x), w, strides, padding, dilation, groups, bfloat16);
  if (b) b.require({s.oc}, "one value a filter");
  y.require(conv2d_output(s), "that of the output");
  require_apart({&y}, {&x, &w, &b});
  Call()->conv2d(s, activation(relu), x.floats(), w.floats(), b.floats(), y.floats());
}

void conv2d_backward_data(const py::object& dy_, const py::object& w_, const py::object& y_,
                          const py::object& dx_, const Pair& strides, const Padding& padding,
                          const Pair& dilation, int64_t groups, bool relu, bool bfloat16) {
  const Array dy = input(dy_, "dy"), w = input(w_, "w"), dx = output(dx_, "dx");
  const Conv2dShape s = conv2d_shape(four(dx), w, strides, padding, dilation, groups, bfloat16);
  dy.require(conv2d_output(s), "that of the output");
  const Array y = activation_output(y_, relu, conv2d_output(s));
  require_apart({&dx}, {&dy, &w, &y});
  Call()->conv2d_backward_data(s, activation(relu), dy.floats(), y.floats(), w.floats(),
                               dx.floats());
}

void conv2d_backward_weights(const py::object& dy_, const py::object& x_, const py::object& y_,
                             const py::object& dw_, const py::object& db_, const Pair& strides,
                             const Padding& padding, const Pair& dilation, int64_t groups,
                             bool relu) {
  const Array dy = input(dy_, "dy"), x = input(x_, "x");
  const Array dw = output(dw_, "dw"), db = optional_output(db_, "db");
  const Conv2dShape s = conv2d_shape(four(x), dw, strides, padding, dilation, groups);
  dy.require(conv2d_output(s), "that of the output");
  const Array y = activation_output(y_, relu, conv2d_output(s));
  if (db) db.require({s.oc}, "one value a filter");
  require_apart({&dw, &db}, {&dy, &x, &y});
  Call()->conv2d_backward_weights(s, activation(relu), dy.floats(), y.floats(), x.floats(),
                                  dw.floats(), db.floats());
}

void conv2d_backward(const py::object& dy_, const py::object& x_, const py::object& w_,
                     const py::object& y_, const py::object& dx_, const py::object& dw_,
                     const py::object& db_, const Pair& strides, const Padding& padding,
                     const Pair& dilation, int64_t groups, bool relu, bool bfloat16) {
  const Array dy = input(dy_, "dy"), x = input(x_, "x"), w = input(w_, "w");
  const Array dx = output(dx_, "dx"), dw = output(dw_, "dw"), db = output(db_, "db");
  const Conv2dShape s = conv2d_shape(four(x), w, strides, padding, dilation, groups, bfloat16);
  dy.require(conv2d_output(s), "that of the output");
  const Array y = activation_output(y_, relu, conv2d_output(s));
  dx.require(x.shape(), "that of x");
  dw.require(w.shape(), "that of w");
  db.require({s.oc}, "one value a filter");
  require_apart({&dx, &dw, &db}, {&dy, &x, &w, &y});
  const Call call;
  call->conv2d_backward_data(s, activation(relu), dy.floats(), y.floats(), w.floats(), dx.floats());
  call->conv2d_backward_weights(s, activation(relu), dy.floats(), y.floats(), x.floats(),
                                dw.floats(), db.floats());
}

// ---------------------------------------------------------------------------------------------

DenseShape dense_shape(const Array& x, const Array& w, bool bfloat16 = false) {
  x.require({any, any}, "(n, inputs)");
  const int64_t in = require_positive(x, 1, "input");
  w.require({in, any}, "(inputs, units)");
  return {x.dim(0), in, require_positive(w, 1, "unit"), bfloat16};
}

void dense(const py::object& x_, const py::object& w_, const py::object& b_, const py::object& y_,
           bool relu, bool bfloat16) {
  const Array x = input(x_, "x"), w = input(w_, "w"), b = optional_input(b_, "b");
  const Array y = output(y_, "out");
  const DenseShape s = dense_shape(x, w, bfloat16);
  if (b) b.require({s.out}, "one value a unit");
  y.require({s.n, s.out}, "(n, units)");
  require_apart({&y}, {&x, &w, &b});
  Call()->dense(s, activation(relu), x.floats(), w.floats(), b.floats(), y.floats());
}

void dense_backward_data(const py::object& dy_, const py::object& w_, const py::object& y_,
                         const py::object& dx_, bool relu, bool bfloat16) {
  const Array dy = input(dy_, "dy"), w = input(w_, "w"), dx = output(dx_, "dx");
  const DenseShape s = dense_shape(dx, w, bfloat16);
  dy.require({s.n, s.out}, "(n, units)");
  const Array y = activation_output(y_, relu, {s.n, s.out});
  require_apart({&dx}, {&dy, &w, &y});
  Call()->dense_backward_data(s, activation(relu), dy.floats(), y.floats(), w.floats(),
                              dx.floats());
}

void dense_backward_weights(const py::object& dy_, const py::object& x_, const py::object& y_,
                            const py::object& dw_, const py::object& db_, bool relu) {
  const Array dy = input(dy_, "dy"), x = input(x_, "x");
  const Array dw = output(dw_, "dw"), db = optional_output(db_, "db");
  const DenseShape s = dense_shape(x, dw);
  dy.require({s.n, s.out}, "(n, units)");
  const Array y = activation_output(y_, relu, {s.n, s.out});
  if (db) db.require({s.out}, "one value a unit");
  require_apart({&dw, &db}, {&dy, &x, &y});
  Call()->dense_backward_weights(s, activation(relu), dy.floats(), y.floats(), x.floats(),
                                 dw.floats(), db.floats());
}

void dense_backward(const py::object& dy_, const py::object& x_, const py::object& w_,
                    const py::object& y_, const py::object& dx_, const py::object& dw_,
                    const py::object& db_, bool relu, bool bfloat16) {
  const Array dy = input(dy_, "dy"), x = input(x_, "x"), w = input(w_, "w");
  const Array dx = output(dx_, "dx"), dw = output(dw_, "dw"), db = output(db_, "db");
  const DenseShape s = dense_shape(x, w, bfloat16);
  dy.require({s.n, s.out}, "(n, units)");
  const Array y = activation_output(y_, relu, {s.n, s.out});
  dx.require(x.shape(), "that of x");
  dw.require(w.shape(), "that of w");
  db.require({s.out}, "one value a unit");
  require_apart({&dx, &dw, &db}, {&dy, &x, &w, &y});
  const Call call;
  call->dense_backward_data(s, activation(relu), dy.floats(), y.floats(), w.floats(), dx.floats());
  call->dense_backward_weights(s, activation(relu), dy.floats(), y.floats(), x.floats(),
                               dw.floats(), db.floats());
}

// ---------------------------------------------------------------------------------------------

Pool2dShape pool2d_shape(const Array& x, const Pair& pool, const Pair& strides,
                         const Padding& padding) {
  for (int64_t value : pool) require_range("pool_size", value, 1);
  require_window(strides, padding, {1, 1});
  for (int axis = 0; axis < 2; ++axis) {
    // Otherwise a window could lie in the padding altogether and have no maximum.
    if (padding[2 * axis] >= pool[axis] || padding[2 * axis + 1] >= pool[axis]) {
      throw py::value_error("padding: expected less than the pool size on every side. Received: " +
                            to_text({padding.begin(), padding.end()}) + ".");
    }
  }
  if (pool[0] * pool[1] > largest_parameter) {
    throw py::value_error("pool_size: expected at most " + std::to_string(largest_parameter) +
                          " positions in a window. Received: " + to_text({pool[0], pool[1]}) + ".");
  }
  Pool2dShape s{};
  x.require({any, any, any, any}, "(n, height, width, channels)");
  s.n = x.dim(0);
  s.h = require_positive(x, 1, "row");
  s.w = require_positive(x, 2, "column");
  s.c = require_positive(x, 3, "channel");
  s.pool_h = pool[0], s.pool_w = pool[1];
  s.stride_h = strides[0], s.stride_w = strides[1];
  s.pad_top = padding[0], s.pad_left = padding[2];
  s.oh = output_size("height", s.h, s.pool_h, s.stride_h, padding[0], padding[1], 1);
  s.ow = output_size("width", s.w, s.pool_w, s.stride_w, padding[2], padding[3], 1);
  return s;
}

const char* argmax_dtype(const Pool2dShape& s) {
  return s.pool_h * s.pool_w <= max_uint8_window ? "uint8" : "int32";
}

void max_pool2d(const py::object& x_, const py::object& y_, const py::object& argmax_,
                const Pair& pool, const Pair& strides, const Padding& padding) {
  const Array x = input(x_, "x"), y = output(y_, "out");
  const Pool2dShape s = pool2d_shape(x, pool, strides, padding);
  const Array argmax = output(argmax_, "argmax", argmax_dtype(s));
  y.require({s.n, s.oh, s.ow, s.c}, "that of the output");
  argmax.require({s.n, s.oh, s.ow, s.c}, "that of the output");
  require_apart({&y, &argmax}, {&x});
  Call()->max_pool2d(s, x.floats(), y.floats(), argmax.data());
}

void max_pool2d_backward(const py::object& dy_, const py::object& argmax_, const py::object& dx_,
                         const Pair& pool, const Pair& strides, const Padding& padding) {
  const Array dy = input(dy_, "dy"), dx = output(dx_, "dx");
  const Pool2dShape s = pool2d_shape(dx, pool, strides, padding);
  const Array argmax(argmax_, "argmax", Array::Access::read, argmax_dtype(s));
  dy.require({s.n, s.oh, s.ow, s.c}, "that of the output");
  argmax.require({s.n, s.oh, s.ow, s.c}, "that of the output");
  require_apart({&dx}, {&dy, &argmax});
  Call()->max_pool2d_backward(s, dy.floats(), argmax.data(), dx.floats());
}

void avg_pool2d(const py::object& x_, const py::object& y_, const Pair& pool, const Pair& strides,
                const Padding& padding) {
  const Array x = input(x_, "x"), y = output(y_, "out");
  const Pool2dShape s = pool2d_shape(x, pool, strides, padding);
  y.require({s.n, s.oh, s.ow, s.c}, "that of the output");
  require_apart({&y}, {&x});
  Call()->avg_pool2d(s, x.floats(), y.floats());
}

void avg_pool2d_backward(const py::object& dy_, const py::object& dx_, const Pair& pool,
                         const Pair& strides, const Padding& padding) {
  const Array dy = input(dy_, "dy"), dx = output(dx_, "dx");
  const Pool2dShape s = pool2d_shape(dx, pool, strides, padding);
  dy.require({s.n, s.oh, s.ow, s.c}, "that of the output");
  require_apart({&dx}, {&dy});
  Call()->avg_pool2d_backward(s, dy.floats(), dx.floats());
}

void pad2d(const py::object& x_, const py::object& y_, const Padding& padding) {
  const Array x = input(x_, "x"), y = output(y_, "out");
  for (int64_t value : padding) require_range("padding", value, -largest_parameter);
  x.require({any, any, any, any}, "(n, height, width, channels)");
  Pad2dShape s{};
  s.n = x.dim(0);
  s.h = require_positive(x, 1, "row");
  s.w = require_positive(x, 2, "column");
  s.c = require_positive(x, 3, "channel");
  s.pad_top = padding[0], s.pad_left = padding[2];
  s.oh = s.h + padding[0] + padding[1], s.ow = s.w + padding[2] + padding[3];
  if (s.oh < 1 || s.ow < 1) {
    throw py::value_error("padding: expected at least one row and column to remain of the " +
                          to_text({s.h, s.w}) +
                          ". Received: " + to_text({padding.begin(), padding.end()}) + ".");
  }
  y.require({s.n, s.oh, s.ow, s.c}, "that of the output");
  require_apart({&y}, {&x});
  Call()->pad2d(s, x.floats(), y.floats());
}

// ---------------------------------------------------------------------------------------------

void relu(const py::object& x_, const py::object& y_) {
  const Array x = input(x_, "x"), y = output(y_, "out");
  y.require(x.shape(), "that of x");
  require_apart_or_same(y, x);
  Call()->relu(x.size(), x.floats(), y.floats());
}

void round_bfloat16(const py::object& x_, const py::object& y_) {
  const Array x = input(x_, "x"), y = output(y_, "out");
  y.require(x.shape(), "that of x");
  require_apart_or_same(y, x);
  Call()->round_bfloat16(x.size(), x.floats(), y.floats());
}

void relu_backward(const py::object& dy_, const py::object& y_, const py::object& dx_) {
  const Array dy = input(dy_, "dy"), y = input(y_, "y"), dx = output(dx_, "out");
  y.require(dy.shape(), "that of dy");
  dx.require(dy.shape(), "that of dy");
  require_apart_or_same(dx, dy);
  require_apart_or_same(dx, y);
  Call()->relu_backward(dy.size(), dy.floats(), y.floats(), dx.floats());
}

Pointwise pointwise(const std::string& name) {
  if (name == "sigmoid") return Pointwise::sigmoid;
  if (name == "tanh") return Pointwise::tanh;
  if (name == "leaky_relu") return Pointwise::leaky_relu;
  if (name == "softplus") return Pointwise::softplus;
  throw py::value_error(
      "name: expected 'sigmoid', 'tanh', 'leaky_relu' or 'softplus'. Received: '" + name + "'.");
}

// y > 0 has to mean x > 0.
void require_slope(double slope) {
  if (slope >= 0.0 && std::isfinite(slope)) return;
  throw py::value_error("negative_slope: expected a finite number of at least 0. Received: " +
                        std::string(py::str(py::float_(slope))) + ".");
}

void activate(const py::object& x_, const py::object& y_, const std::string& name, double slope) {
  const Array x = input(x_, "x"), y = output(y_, "out");
  const Pointwise function = pointwise(name);
  require_slope(slope);
  y.require(x.shape(), "that of x");
  require_apart_or_same(y, x);
  Call()->activate(x.size(), function, static_cast<float>(slope), x.floats(), y.floats());
}

void activate_backward(const py::object& dy_, const py::object& y_, const py::object& dx_,
                       const std::string& name, double slope) {
  const Array dy = input(dy_, "dy"), y = input(y_, "y"), dx = output(dx_, "out");
  const Pointwise function = pointwise(name);
  require_slope(slope);
  y.require(dy.shape(), "that of dy");
  dx.require(dy.shape(), "that of dy");
  require_apart_or_same(dx, dy);
  require_apart_or_same(dx, y);
  Call()->activate_backward(dy.size(), function, static_cast<float>(slope), dy.floats(), y.floats(),
                            dx.floats());
}

// Rows of channels, whatever axes the rows come from.
struct ChannelRows {
  int64_t rows, c;
};
ChannelRows channel_rows(const Array& x) {
  if (x.shape().size() < 2) {
    throw py::value_error(std::string(x.name()) +
                          ": expected shape (n, ..., channels). Received: " + to_text(x.shape()) +
                          ".");
  }
  const int64_t c = require_positive(x, x.shape().size() - 1, "channel");
  return {x.size() / c, c};
}

void require_channels(const std::vector<const Array*>& arrays, int64_t c) {
  for (const Array* array : arrays) {
    if (*array) array->require({c}, "one value a channel");
  }
}

void require_epsilon(double epsilon) {
  if (epsilon >= 0.0 && std::isfinite(epsilon)) return;
  throw py::value_error("epsilon: expected a finite number of at least 0. Received: " +
                        std::string(py::str(py::float_(epsilon))) + ".");
}

void batch_norm(const py::object& x_, const py::object& gamma_, const py::object& beta_,
                const py::object& mean_, const py::object& variance_, const py::object& y_,
                double epsilon) {
  const Array x = input(x_, "x"), mean = input(mean_, "mean");
  const Array variance = input(variance_, "variance");
  const Array gamma = optional_input(gamma_, "gamma"), beta = optional_input(beta_, "beta");
  const Array y = output(y_, "out");
  const auto [rows, c] = channel_rows(x);
  require_channels({&gamma, &beta, &mean, &variance}, c);
  require_epsilon(epsilon);
  y.require(x.shape(), "that of x");
  require_apart_or_same(y, x);
  require_apart({&y}, {&gamma, &beta, &mean, &variance});
  Call()->batch_norm(rows, c, x.floats(), gamma.floats(), beta.floats(), mean.floats(),
                     variance.floats(), epsilon, y.floats());
}

void batch_norm_training(const py::object& x_, const py::object& gamma_, const py::object& beta_,
                         const py::object& moving_mean_, const py::object& moving_variance_,
                         const py::object& y_, const py::object& mean_, const py::object& inverse_,
                         double momentum, double epsilon) {
  const Array x = input(x_, "x");
  const Array gamma = optional_input(gamma_, "gamma"), beta = optional_input(beta_, "beta");
  const Array moving_mean = output(moving_mean_, "moving_mean");
  const Array moving_variance = output(moving_variance_, "moving_variance");
  const Array y = output(y_, "out"), mean = output(mean_, "mean");
  const Array inverse = output(inverse_, "inverse");
  const auto [rows, c] = channel_rows(x);
  if (rows == 0) {
    throw py::value_error("x: expected at least one sample, to take the mean of. Received shape " +
                          to_text(x.shape()) + ".");
  }
  require_channels({&gamma, &beta, &moving_mean, &moving_variance, &mean, &inverse}, c);
  require_epsilon(epsilon);
  if (!(momentum >= 0.0 && momentum <= 1.0)) {
    throw py::value_error("momentum: expected a number from 0 to 1. Received: " +
                          std::string(py::str(py::float_(momentum))) + ".");
  }
  y.require(x.shape(), "that of x");
  require_apart_or_same(y, x);
  require_apart({&y}, {&gamma, &beta});
  require_apart({&moving_mean, &moving_variance, &mean, &inverse}, {&x, &gamma, &beta, &y});
  Call()->batch_norm_training(rows, c, x.floats(), gamma.floats(), beta.floats(), momentum, epsilon,
                              moving_mean.floats(), moving_variance.floats(), mean.floats(),
                              inverse.floats(), y.floats());
}

void batch_norm_backward(const py::object& dy_, const py::object& x_, const py::object& gamma_,
                         const py::object& mean_, const py::object& inverse_, const py::object& dx_,
                         const py::object& dgamma_, const py::object& dbeta_) {
  const Array dy = input(dy_, "dy"), x = input(x_, "x"), gamma = optional_input(gamma_, "gamma");
  const Array mean = input(mean_, "mean"), inverse = input(inverse_, "inverse");
  const Array dx = output(dx_, "dx");
  const Array dgamma = output(dgamma_, "dgamma"), dbeta = output(dbeta_, "dbeta");
  const auto [rows, c] = channel_rows(x);
  dy.require(x.shape(), "that of x");
  dx.require(x.shape(), "that of x");
  require_channels({&gamma, &mean, &inverse, &dgamma, &dbeta}, c);
  require_apart_or_same(dx, dy);
  require_apart({&dx}, {&x, &gamma, &mean, &inverse});
  require_apart({&dgamma, &dbeta}, {&dy, &x, &gamma, &mean, &inverse, &dx});
  Call()->batch_norm_backward(rows, c, dy.floats(), x.floats(), gamma.floats(), mean.floats(),
                              inverse.floats(), dx.floats(), dgamma.floats(), dbeta.floats());
}

Dropout dropout_of(double rate, uint64_t seed, const Scalar<uint64_t>& offset, uint64_t first) {
  if (first % 4 != 0) {
    throw py::value_error("first: expected a multiple of 4. Received: " + std::to_string(first) +
                          ".");
  }
  if (!(rate >= 0.0 && rate < 1.0)) {
    throw py::value_error("rate: expected a number of at least 0 and below 1. Received: " +
                          std::string(py::str(py::float_(rate))) + ".");
  }
  return {.scale = static_cast<float>(1.0 / (1.0 - rate)),
          .threshold = static_cast<uint64_t>(std::ceil(std::ldexp(rate, 32))),
          .seed = seed,
          .offset = offset,
          .first = first / 4};
}

void dropout(const py::object& x_, const py::object& y_, double rate, uint64_t seed,
             const py::object& offset_, uint64_t first) {
  const Array x = input(x_, "x"), y = output(y_, "out");
  const ScalarArgument<uint64_t> offset(offset_, "offset", "uint64");
  y.require(x.shape(), "that of x");
  require_apart_or_same(y, x);
  const Dropout d = dropout_of(rate, seed, offset, first);
  Call()->dropout(x.size(), d, x.floats(), y.floats());
}

void require_rows(const Array& x) {
  x.require({any, any}, "(n, classes)");
  require_positive(x, 1, "class");
}

void softmax(const py::object& x_, const py::object& y_) {
  const Array x = input(x_, "x"), y = output(y_, "out");
  require_rows(x);
  y.require(x.shape(), "that of x");
  require_apart_or_same(y, x);
  Call()->softmax(x.dim(0), x.dim(1), x.floats(), y.floats());
}

void softmax_backward(const py::object& dy_, const py::object& y_, const py::object& dx_) {
  const Array dy = input(dy_, "dy"), y = input(y_, "y"), dx = output(dx_, "out");
  require_rows(dy);
  y.require(dy.shape(), "that of dy");
  dx.require(dy.shape(), "that of dy");
  require_apart_or_same(dx, dy);
  require_apart_or_same(dx, y);
  Call()->softmax_backward(dy.dim(0), dy.dim(1), dy.floats(), y.floats(), dx.floats());
}

void softmax_cross_entropy(const py::object& logits_, const py::object& labels_,
                           const py::object& loss_, const py::object& probabilities_,
                           const py::object& dlogits_, int64_t batch) {
  const Array logits = input(logits_, "logits"), labels = input(labels_, "labels");
  const Array loss = output(loss_, "loss"), probabilities = output(probabilities_, "probabilities");
  const Array dlogits = output(dlogits_, "dlogits");
  require_rows(logits);
  labels.require(logits.shape(), "that of logits");
  loss.require({logits.dim(0)}, "one value a row of logits");
  probabilities.require(logits.shape(), "that of logits");
  dlogits.require(logits.shape(), "that of logits");
  require_apart({&loss, &probabilities, &dlogits}, {&logits, &labels});
  if (batch < 1 && logits.dim(0) > 0) {
    throw py::value_error("batch: expected a positive integer. Received: " + std::to_string(batch) +
                          ".");
  }
  Call()->softmax_cross_entropy(logits.dim(0), logits.dim(1), batch, logits.floats(),
                                labels.floats(), loss.floats(), probabilities.floats(),
                                dlogits.floats());
}

// ---------------------------------------------------------------------------------------------

// w and its companions: equal shapes, memory apart.
void require_parameters(const Array& w, const Array& dw, const std::vector<const Array*>& slots) {
  dw.require(w.shape(), "that of w");
  std::vector<const Array*> written{&w};
  for (const Array* slot : slots) {
    if (!*slot) continue;
    slot->require(w.shape(), "that of w");
    written.push_back(slot);
  }
  require_apart(written, {&dw});
}

void sgd_step(const py::object& w_, const py::object& dw_, const py::object& velocity_,
              const py::object& learning_rate_, float momentum, bool nesterov) {
  const Array w = output(w_, "w"), dw = input(dw_, "dw");
  const Array velocity = optional_output(velocity_, "velocity");
  const ScalarArgument<float> learning_rate(learning_rate_, "learning_rate", "float32");
  require_parameters(w, dw, {&velocity});
  if (!velocity && momentum != 0.0f) {
    throw py::value_error("velocity: expected an array, which momentum needs. Received: None.");
  }
  Call()->sgd_step(w.size(), w.floats(), dw.floats(), velocity.floats(), learning_rate, momentum,
                   nesterov);
}

void rmsprop_step(const py::object& w_, const py::object& dw_, const py::object& velocity_,
                  const py::object& learning_rate_, double rho, double epsilon) {
  const Array w = output(w_, "w"), dw = input(dw_, "dw"), velocity = output(velocity_, "velocity");
  const ScalarArgument<float> learning_rate(learning_rate_, "learning_rate", "float32");
  require_parameters(w, dw, {&velocity});
  Call()->rmsprop_step(w.size(), w.floats(), dw.floats(), velocity.floats(), learning_rate,
                       static_cast<float>(rho), static_cast<float>(1.0 - rho),
                       static_cast<float>(epsilon));
}

void adam_step(const py::object& w_, const py::object& dw_, const py::object& m_,
               const py::object& v_, const py::object& step_, const py::object& learning_rate_,
               double beta_1, double beta_2, double epsilon) {
  const Array w = output(w_, "w"), dw = input(dw_, "dw");
  const Array m = output(m_, "m"), v = output(v_, "v");
  const ScalarArgument<float> learning_rate(learning_rate_, "learning_rate", "float32");
  require_parameters(w, dw, {&m, &v});
  if (!is_array(step_) && PyIndex_Check(step_.ptr()) && step_ < py::int_(1)) {
    throw py::value_error(
        "step: expected a count from 1. Received: " + std::string(py::str(step_)) + ".");
  }
  const ScalarArgument<uint64_t> step(step_, "step", "uint64");
  Call()->adam_step(w.size(), w.floats(), dw.floats(), m.floats(), v.floats(), learning_rate, step,
                    beta_1, beta_2, static_cast<float>(epsilon));
}

// ---------------------------------------------------------------------------------------------

// The fused convolution, ReLU, 2x2 max pooling and dropout.
ConvPoolShape conv2d_pool_shape(const Conv2dShape& conv) {
  if (conv.oh < 2 || conv.ow < 2) {
    throw py::value_error(
        "x: expected an output of the convolution of at least 2 rows and columns, one pooling "
        "window. Received an output of " +
        std::to_string(conv.oh) + " x " + std::to_string(conv.ow) + ".");
  }
  return {.conv = conv, .ph = conv.oh / 2, .pw = conv.ow / 2};
}

Shape pooled_output(const ConvPoolShape& s) { return {s.conv.n, s.ph, s.pw, s.conv.oc}; }

void require_supported(const void* operation, const char* name) {
  if (operation != nullptr) return;
  PyErr_Format(PyExc_NotImplementedError,
               "%s: this device has no such kernel. Use the separate operations.", name);
  throw py::error_already_set();
}

void conv2d_pool(const py::object& x_, const py::object& w_, const py::object& b_,
                 const py::object& y_, const py::object& winner_, const Pair& strides,
                 const Padding& padding, const Pair& dilation, int64_t groups, double rate,
                 uint64_t seed, const py::object& offset_, uint64_t first, bool bfloat16) {
  const Array x = input(x_, "x"), w = input(w_, "w"), b = optional_input(b_, "b");
  const Array y = output(y_, "out"), winner = output(winner_, "winner", "uint8");
  const ScalarArgument<uint64_t> offset(offset_, "offset", "uint64");
  const ConvPoolShape s =
      conv2d_pool_shape(conv2d_shape(four(x), w, strides, padding, dilation, groups, bfloat16));
  if (b) b.require({s.conv.oc}, "one value a filter");
  y.require(pooled_output(s), "that of the pooled output");
  winner.require(pooled_output(s), "that of the pooled output");
  require_apart({&y, &winner}, {&x, &w, &b});
  const Dropout d = dropout_of(rate, seed, offset, first);
  Call()->conv2d_pool(s, d, x.floats(), w.floats(), b.floats(), y.floats(),
                      static_cast<uint8_t*>(winner.data()));
}

void conv2d_pool_backward(const py::object& dy_, const py::object& winner_, const py::object& x_,
                          const py::object& w_, const py::object& dx_, const py::object& dw_,
                          const py::object& db_, const Pair& strides, const Padding& padding,
                          const Pair& dilation, int64_t groups, double rate) {
  const Array dy = input(dy_, "dy"), x = input(x_, "x"), w = input(w_, "w");
  const Array winner(winner_, "winner", Array::Access::read, "uint8");
  const Array dx = optional_output(dx_, "dx"), dw = output(dw_, "dw"), db = output(db_, "db");
  const ConvPoolShape s =
      conv2d_pool_shape(conv2d_shape(four(x), w, strides, padding, dilation, groups));
  dy.require(pooled_output(s), "that of the pooled output");
  winner.require(pooled_output(s), "that of the pooled output");
  if (dx) dx.require(x.shape(), "that of x");
  dw.require(w.shape(), "that of w");
  db.require({s.conv.oc}, "one value a filter");
  require_apart({&dx, &dw, &db}, {&dy, &winner, &x, &w});
  const float scale = dropout_of(rate, 0, {}, 0).scale;
  const auto* winners = static_cast<const uint8_t*>(winner.data());
  const Call call;
  if (dx) {
    call->conv2d_pool_backward_data(s, scale, dy.floats(), winners, w.floats(), dx.floats());
  }
  call->conv2d_pool_backward_weights(s, scale, dy.floats(), winners, x.floats(), dw.floats(),
                                     db.floats());
}

void conv2d_pool_backward_through(const py::object& dy_, const py::object& winner_,
                                  const py::object& w_, const py::object& y_, const py::object& x_,
                                  const py::object& dw_, const py::object& db_, const Pair& strides,
                                  const Padding& padding, const Pair& dilation, int64_t groups,
                                  double rate, const Pair& first_strides,
                                  const Padding& first_padding, const Pair& first_dilation,
                                  int64_t first_groups, bool relu) {
  require_supported(reinterpret_cast<const void*>(operations().conv2d_pool_backward_through),
                    "conv2d_pool_backward_through");
  const Array dy = input(dy_, "dy"), w = input(w_, "w"), y = input(y_, "y"), x = input(x_, "x");
  const Array winner(winner_, "winner", Array::Access::read, "uint8");
  const Array dw = output(dw_, "dw"), db = output(db_, "db");
  const Conv2dShape first =
      conv2d_shape(four(x), dw, first_strides, first_padding, first_dilation, first_groups);
  y.require(conv2d_output(first), "that of the first layer's output");
  const ConvPoolShape second =
      conv2d_pool_shape(conv2d_shape(four(y), w, strides, padding, dilation, groups));
  dy.require(pooled_output(second), "that of the pooled output");
  winner.require(pooled_output(second), "that of the pooled output");
  db.require({first.oc}, "one value a filter");
  require_apart({&dw, &db}, {&dy, &winner, &w, &y, &x});
  const float scale = dropout_of(rate, 0, {}, 0).scale;
  Call()->conv2d_pool_backward_through(
      second, scale, dy.floats(), static_cast<const uint8_t*>(winner.data()), w.floats(), first,
      activation(relu), y.floats(), x.floats(), dw.floats(), db.floats());
}

void gather(const py::object& source_, const py::object& indices_, const py::object& out_,
            float scale, bool bytes) {
  require_supported(reinterpret_cast<const void*>(operations().gather_floats), "gather");
  const Array source(source_, "source", Array::Access::read, bytes ? "uint8" : "float32");
  const Array indices(indices_, "indices", Array::Access::read, "int64");
  const Array out = output(out_, "out");
  indices.require({any}, "one index a row");
  if (source.shape().empty() || source.dim(0) < 1) {
    throw py::value_error("source: expected at least one row. Received shape " +
                          to_text(source.shape()) + ".");
  }
  Shape expected = source.shape();
  expected[0] = indices.dim(0);
  out.require(expected, "one row of source an index");
  require_apart({&out}, {&source, &indices});
  const int64_t rows = source.dim(0), row = source.size() / rows;
  const auto* index = static_cast<const int64_t*>(indices.data());
  const Call call;
  if (bytes) {
    call->gather_bytes(indices.dim(0), row, rows, static_cast<const uint8_t*>(source.data()), index,
                       scale, out.floats());
  } else {
    call->gather_floats(indices.dim(0), row, rows, source.floats(), index, scale, out.floats());
  }
}

bool is_main_interpreter() { return PyInterpreterState_Get() == PyInterpreterState_Main(); }
constexpr const char* only_main_interpreter =
    "pyconv: expected the process's main interpreter. Received: a subinterpreter, for which "
    "neither NumPy nor pyconv is made. Use threads, as kernels release the GIL, or processes "
    "(multiprocessing).";

// An operation as Python calls it.
template <class... Arguments>
auto operation(void (*function)(Arguments...)) {
  return [function](Arguments... arguments) {
    begin_call();
    function(std::forward<Arguments>(arguments)...);
  };
}

}  // namespace

#define PYCONV_JOIN_(a, b) a##b
#define PYCONV_JOIN(a, b) PYCONV_JOIN_(a, b)

// What `import` calls is below.
PYBIND11_MODULE(PYCONV_JOIN(checked, PYCONV_MODULE), m) {
  if (!is_main_interpreter()) throw py::import_error(only_main_interpreter);
  m.attr("__version__") = PYCONV_VERSION;
  using py::arg;

  define_backend(m);

  m.def("conv2d", operation(&conv2d), arg("x"), arg("w"), arg("b").none(true), arg("out"),
        arg("strides"), arg("padding"), arg("dilation_rate"), arg("groups"), arg("relu"),
        arg("bfloat16") = false);
  m.def("conv2d_backward_data", operation(&conv2d_backward_data), arg("dy"), arg("w"), arg("y"),
        arg("dx"), arg("strides"), arg("padding"), arg("dilation_rate"), arg("groups"), arg("relu"),
        arg("bfloat16") = false);
  m.def("conv2d_backward_weights", operation(&conv2d_backward_weights), arg("dy"), arg("x"),
        arg("y"), arg("dw"), arg("db"), arg("strides"), arg("padding"), arg("dilation_rate"),
        arg("groups"), arg("relu"));
  m.def("conv2d_backward", operation(&conv2d_backward), arg("dy"), arg("x"), arg("w"), arg("y"),
        arg("dx"), arg("dw"), arg("db"), arg("strides"), arg("padding"), arg("dilation_rate"),
        arg("groups"), arg("relu"), arg("bfloat16") = false);
  m.def("dense", operation(&dense), arg("x"), arg("w"), arg("b"), arg("out"), arg("relu"),
        arg("bfloat16") = false);
  m.def("dense_backward_data", operation(&dense_backward_data), arg("dy"), arg("w"), arg("y"),
        arg("dx"), arg("relu"), arg("bfloat16") = false);
  m.def("dense_backward_weights", operation(&dense_backward_weights), arg("dy"), arg("x"), arg("y"),
        arg("dw"), arg("db"), arg("relu"));
  m.def("dense_backward", operation(&dense_backward), arg("dy"), arg("x"), arg("w"), arg("y"),
        arg("dx"), arg("dw"), arg("db"), arg("relu"), arg("bfloat16") = false);
  m.def("max_pool2d", operation(&max_pool2d), arg("x"), arg("out"), arg("argmax"), arg("pool_size"),
        arg("strides"), arg("padding"));
  m.def("max_pool2d_backward", operation(&max_pool2d_backward), arg("dy"), arg("argmax"), arg("dx"),
        arg("pool_size"), arg("strides"), arg("padding"));
  m.def("avg_pool2d", operation(&avg_pool2d), arg("x"), arg("out"), arg("pool_size"),
        arg("strides"), arg("padding"));
  m.def("avg_pool2d_backward", operation(&avg_pool2d_backward), arg("dy"), arg("dx"),
        arg("pool_size"), arg("strides"), arg("padding"));
  m.def("pad2d", operation(&pad2d), arg("x"), arg("out"), arg("padding"));
  m.def("relu", operation(&relu), arg("x"), arg("out"));
  m.def("round_bfloat16", operation(&round_bfloat16), arg("x"), arg("out"));
  m.def("relu_backward", operation(&relu_backward), arg("dy"), arg("y"), arg("out"));
  m.def("activate", operation(&activate), arg("x"), arg("out"), arg("name"), arg("negative_slope"));
  m.def("activate_backward", operation(&activate_backward), arg("dy"), arg("y"), arg("out"),
        arg("name"), arg("negative_slope"));
  m.def("batch_norm", operation(&batch_norm), arg("x"), arg("gamma"), arg("beta"), arg("mean"),
        arg("variance"), arg("out"), arg("epsilon"));
  m.def("batch_norm_training", operation(&batch_norm_training), arg("x"), arg("gamma"), arg("beta"),
        arg("moving_mean"), arg("moving_variance"), arg("out"), arg("mean"), arg("inverse"),
        arg("momentum"), arg("epsilon"));
  m.def("batch_norm_backward", operation(&batch_norm_backward), arg("dy"), arg("x"), arg("gamma"),
        arg("mean"), arg("inverse"), arg("dx"), arg("dgamma"), arg("dbeta"));
  m.def("softmax", operation(&softmax), arg("x"), arg("out"));
  m.def("softmax_backward", operation(&softmax_backward), arg("dy"), arg("y"), arg("out"));
  m.def("softmax_cross_entropy", operation(&softmax_cross_entropy), arg("logits"), arg("labels"),
        arg("loss"), arg("probabilities"), arg("dlogits"), arg("batch"));
  m.def("dropout", operation(&dropout), arg("x"), arg("out"), arg("rate"), arg("seed"),
        arg("offset"), arg("first"));
  m.def("sgd_step", operation(&sgd_step), arg("w"), arg("dw"), arg("velocity"),
        arg("learning_rate"), arg("momentum"), arg("nesterov"));
  m.def("rmsprop_step", operation(&rmsprop_step), arg("w"), arg("dw"), arg("velocity"),
        arg("learning_rate"), arg("rho"), arg("epsilon"));
  m.def("adam_step", operation(&adam_step), arg("w"), arg("dw"), arg("m"), arg("v"), arg("step"),
        arg("learning_rate"), arg("beta_1"), arg("beta_2"), arg("epsilon"));
  m.def("conv2d_pool", operation(&conv2d_pool), arg("x"), arg("w"), arg("b"), arg("out"),
        arg("winner"), arg("strides"), arg("padding"), arg("dilation_rate"), arg("groups"),
        arg("rate"), arg("seed"), arg("offset"), arg("first"), arg("bfloat16") = false);
  m.def("conv2d_pool_backward", operation(&conv2d_pool_backward), arg("dy"), arg("winner"),
        arg("x"), arg("w"), arg("dx"), arg("dw"), arg("db"), arg("strides"), arg("padding"),
        arg("dilation_rate"), arg("groups"), arg("rate"));
  m.def("conv2d_pool_backward_through", operation(&conv2d_pool_backward_through), arg("dy"),
        arg("winner"), arg("w"), arg("y"), arg("x"), arg("dw"), arg("db"), arg("strides"),
        arg("padding"), arg("dilation_rate"), arg("groups"), arg("rate"), arg("first_strides"),
        arg("first_padding"), arg("first_dilation_rate"), arg("first_groups"), arg("relu"));
  m.def("gather", operation(&gather), arg("source"), arg("indices"), arg("out"), arg("scale"),
        arg("bytes"));
}

// Before Python 3.13 the module is refused here, as pybind11 could wait for ever in a
// subinterpreter of those. From then on Python calls this in the main interpreter.
extern "C" PYBIND11_EXPORT PyObject* PYCONV_JOIN(PyInit_, PYCONV_MODULE)() {
  if (is_main_interpreter()) return PYCONV_JOIN(PyInit_checked, PYCONV_MODULE)();
  PyErr_SetString(PyExc_ImportError, only_main_interpreter);
  return nullptr;
}

}  // namespace pyconv::bindings
