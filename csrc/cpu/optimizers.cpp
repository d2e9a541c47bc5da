// One step of an optimizer over a flat array of parameters, in place: w and the slots are read and
// overwritten, dw is read. The formulas are Keras's (keras/src/optimizers).
//
//   sgd_step      v = momentum * v - lr * g;  w += v, or with Nesterov  w += momentum * v - lr * g
//   rmsprop_step  v = rho * v + rest * g^2;  w -= lr * g / sqrt(v + epsilon)
//   adam_step     m += (g - m) * rest_1;  v += (g^2 - v) * rest_2;
//                 w -= alpha * m / (sqrt(v) + epsilon),  alpha as below
//
// alpha = lr * sqrt(1 - beta_2^step) / (1 - beta_1^step), and rest_i = 1 - beta_i. What is 1 minus
// something is taken in double: in float, 1 - 0.999 is off by 1e-5 of its value.
#include <math.h>

#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

constexpr int64_t piece = 8 * 1024;

// The loops have functions of their own because only arguments can be declared not to overlap, and
// without that these loops are not vectorised.

void rmsprop_range(int64_t size, float* __restrict w, const float* __restrict dw,
                   float* __restrict velocity, float learning_rate, float rho, float rest,
                   float epsilon) {
  for (int64_t i = 0; i < size; ++i) {
    velocity[i] = rho * velocity[i] + rest * (dw[i] * dw[i]);
    w[i] -= learning_rate * dw[i] / sqrtf(velocity[i] + epsilon);
  }
}

void adam_range(int64_t size, float* __restrict w, const float* __restrict dw, float* __restrict m,
                float* __restrict v, float alpha, float rest_1, float rest_2, float epsilon) {
  for (int64_t i = 0; i < size; ++i) {
    m[i] += (dw[i] - m[i]) * rest_1;
    v[i] += (dw[i] * dw[i] - v[i]) * rest_2;
    w[i] -= alpha * m[i] / (sqrtf(v[i]) + epsilon);
  }
}

}  // namespace

void sgd_step(int64_t size, float* w, const float* dw, float* velocity, Scalar<float> rate,
              float momentum, bool nesterov) {
  const float learning_rate = get(rate);
  parallel_ranges(size, piece, [&](int64_t begin, int64_t end) {
    if (velocity == nullptr) {
      for (int64_t i = begin; i < end; ++i) w[i] -= learning_rate * dw[i];
    } else if (!nesterov) {
      for (int64_t i = begin; i < end; ++i) {
        velocity[i] = momentum * velocity[i] - learning_rate * dw[i];
        w[i] += velocity[i];
      }
    } else {
      for (int64_t i = begin; i < end; ++i) {
        const float step = learning_rate * dw[i];
        velocity[i] = momentum * velocity[i] - step;
        w[i] += momentum * velocity[i] - step;
      }
    }
  });
}

void rmsprop_step(int64_t size, float* w, const float* dw, float* velocity, Scalar<float> rate,
                  float rho, float rest, float epsilon) {
  const float learning_rate = get(rate);
  parallel_ranges(size, piece, [&](int64_t begin, int64_t end) {
    rmsprop_range(end - begin, w + begin, dw + begin, velocity + begin, learning_rate, rho, rest,
                  epsilon);
  });
}

void adam_step(int64_t size, float* w, const float* dw, float* m, float* v, Scalar<float> rate,
               Scalar<uint64_t> step, double beta_1, double beta_2, float epsilon) {
  const double t = static_cast<double>(get(step));
  const float alpha = static_cast<float>(static_cast<double>(get(rate)) *
                                         sqrt(1.0 - pow(beta_2, t)) / (1.0 - pow(beta_1, t)));
  const float rest_1 = static_cast<float>(1.0 - beta_1);
  const float rest_2 = static_cast<float>(1.0 - beta_2);
  parallel_ranges(size, piece, [&](int64_t begin, int64_t end) {
    adam_range(end - begin, w + begin, dw + begin, m + begin, v + begin, alpha, rest_1, rest_2,
               epsilon);
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
