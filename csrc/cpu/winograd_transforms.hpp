// The transforms of Winograd's algorithms F(4x4, 3x3) and F(6x6, 3x3); see conv2d_winograd.cpp.
//
// Each is a struct that takes `in` vectors to `out`, along one axis: products of a small matrix,
// written out with what its rows share. In pairs of rows, for a point and its negative, the even
// columns are the same and the odd ones change sign. M is the side of a tile of outputs.
#pragma once

#include "isa.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// What the rows of a point and of its negative give.
static inline void add_and_sub(vec even, vec odd, vec& plus, vec& minus) {
  plus = add(even, odd);
  minus = sub(even, odd);
}

// B^T: the values of a patch to as many transforms.
template <int M>
struct InputTransform;
template <>
struct InputTransform<4> {
  static constexpr int in = 6, out = 6;
  void operator()(const vec (&d)[6], vec (&t)[6]) const {
    const vec two = broadcast(2.0f), four = broadcast(4.0f), five = broadcast(5.0f);
    const vec even = fnmadd(four, d[2], d[4]), odd = fnmadd(four, d[1], d[3]);
    const vec even2 = sub(d[4], d[2]), odd2 = sub(d[3], d[1]);
    t[0] = fmadd(four, d[0], fnmadd(five, d[2], d[4]));
    add_and_sub(even, odd, t[1], t[2]);
    t[3] = fmadd(two, odd2, even2);
    t[4] = fnmadd(two, odd2, even2);
    t[5] = fmadd(four, d[1], fnmadd(five, d[3], d[5]));
  }
};

template <>
struct InputTransform<6> {
  static constexpr int in = 8, out = 8;
  void operator()(const vec (&d)[8], vec (&t)[8]) const {
    const vec half = broadcast(0.5f), quarter = broadcast(0.25f), two = broadcast(2.0f);
    const vec c21 = broadcast(5.25f), c17 = broadcast(4.25f), c10 = broadcast(2.5f);
    const vec c5 = broadcast(1.25f), c20 = broadcast(5.0f), c16 = broadcast(4.0f);
    const vec even1 = fnmadd(c17, d[4], add(d[2], d[6]));
    const vec odd1 = fnmadd(c17, d[3], add(d[1], d[5]));
    const vec even2 = fmadd(quarter, d[2], fnmadd(c5, d[4], d[6]));
    const vec odd2 = fmadd(two, d[5], fnmadd(c10, d[3], mul(half, d[1])));
    const vec even3 = fmadd(c16, d[2], fnmadd(c20, d[4], d[6]));
    const vec odd3 = fmadd(half, d[5], fnmadd(c10, d[3], mul(two, d[1])));
    t[0] = fmadd(c21, sub(d[4], d[2]), sub(d[0], d[6]));
    add_and_sub(even1, odd1, t[1], t[2]);
    add_and_sub(even2, odd2, t[3], t[4]);
    add_and_sub(even3, odd3, t[5], t[6]);
    t[7] = fmadd(c21, sub(d[3], d[5]), sub(d[7], d[1]));
  }
};

// A^T: products to outputs.
template <int M>
struct OutputTransform;
template <>
struct OutputTransform<4> {
  static constexpr int in = 6, out = 4;
  void operator()(const vec (&m)[6], vec (&y)[4]) const {
    const vec two = broadcast(2.0f), four = broadcast(4.0f), eight = broadcast(8.0f);
    const vec sum1 = add(m[1], m[2]), difference1 = sub(m[1], m[2]);
    const vec sum2 = add(m[3], m[4]), difference2 = sub(m[3], m[4]);
    y[0] = add(add(m[0], sum1), sum2);
    y[1] = fmadd(two, difference2, difference1);
    y[2] = fmadd(four, sum2, sum1);
    y[3] = add(fmadd(eight, difference2, difference1), m[5]);
  }
};

template <>
struct OutputTransform<6> {
  static constexpr int in = 8, out = 6;
  void operator()(const vec (&m)[8], vec (&y)[6]) const {
    const auto times = [](float factor, vec a, vec b) { return fmadd(broadcast(factor), a, b); };
    const vec sum1 = add(m[1], m[2]), difference1 = sub(m[1], m[2]);
    const vec sum2 = add(m[3], m[4]), difference2 = sub(m[3], m[4]);
    const vec sum3 = add(m[5], m[6]), difference3 = sub(m[5], m[6]);
    y[0] = add(add(m[0], sum1), add(sum2, sum3));
    y[1] = times(0.5f, difference3, times(2.0f, difference2, difference1));
    y[2] = times(1.0f / 4, sum3, times(4.0f, sum2, sum1));
    y[3] = times(1.0f / 8, difference3, times(8.0f, difference2, difference1));
    y[4] = times(1.0f / 16, sum3, times(16.0f, sum2, sum1));
    y[5] = add(times(1.0f / 32, difference3, times(32.0f, difference2, difference1)), m[7]);
  }
};

// A: gradients of outputs to those of products.
template <int M>
struct GradientTransform;
template <>
struct GradientTransform<4> {
  static constexpr int in = 4, out = 6;
  void operator()(const vec (&y)[4], vec (&m)[6]) const {
    const vec two = broadcast(2.0f), four = broadcast(4.0f);
    const vec even1 = add(y[0], y[2]), odd1 = add(y[1], y[3]);
    const vec even2 = fmadd(four, y[2], y[0]), odd2 = mul(two, fmadd(four, y[3], y[1]));
    m[0] = y[0];
    add_and_sub(even1, odd1, m[1], m[2]);
    add_and_sub(even2, odd2, m[3], m[4]);
    m[5] = y[3];
  }
};

template <>
struct GradientTransform<6> {
  static constexpr int in = 6, out = 8;
  void operator()(const vec (&y)[6], vec (&m)[8]) const {
    const auto times = [](float factor, vec a, vec b) { return fmadd(broadcast(factor), a, b); };
    const vec even1 = add(add(y[0], y[2]), y[4]), odd1 = add(add(y[1], y[3]), y[5]);
    const vec even2 = times(16.0f, y[4], times(4.0f, y[2], y[0]));
    const vec odd2 = mul(broadcast(2.0f), times(16.0f, y[5], times(4.0f, y[3], y[1])));
    const vec even3 = times(1.0f / 16, y[4], times(1.0f / 4, y[2], y[0]));
    const vec odd3 = mul(broadcast(0.5f), times(1.0f / 16, y[5], times(1.0f / 4, y[3], y[1])));
    m[0] = y[0];
    add_and_sub(even1, odd1, m[1], m[2]);
    add_and_sub(even2, odd2, m[3], m[4]);
    add_and_sub(even3, odd3, m[5], m[6]);
    m[7] = y[5];
  }
};

// G: three taps to as many as a patch has values.
template <int M>
struct TapsTransform;
template <>
struct TapsTransform<4> {
  static constexpr int in = 3, out = 6;
  void operator()(const vec (&w)[3], vec (&u)[6]) const {
    const vec quarter = broadcast(1.0f / 4), sixth = broadcast(1.0f / 6);
    const vec twelfth = broadcast(1.0f / 12), twenty_fourth = broadcast(1.0f / 24);
    const vec even1 = mul(sixth, add(w[0], w[2])), odd1 = mul(sixth, w[1]);
    const vec even2 = fmadd(sixth, w[2], mul(twenty_fourth, w[0])), odd2 = mul(twelfth, w[1]);
    u[0] = mul(quarter, w[0]);
    u[1] = sub(zero(), add(even1, odd1));
    u[2] = sub(odd1, even1);
    add_and_sub(even2, odd2, u[3], u[4]);
    u[5] = w[2];
  }
};

template <>
struct TapsTransform<6> {
  static constexpr int in = 3, out = 8;
  void operator()(const vec (&w)[3], vec (&u)[8]) const {
    const auto factor = [](float numerator, vec a) { return mul(broadcast(numerator), a); };
    const vec even1 = factor(-2.0f / 9, add(w[0], w[2])), odd1 = factor(-2.0f / 9, w[1]);
    const vec even2 = fmadd(broadcast(2.0f / 45), w[2], factor(1.0f / 90, w[0]));
    const vec odd2 = factor(1.0f / 45, w[1]);
    const vec even3 = fmadd(broadcast(8.0f / 45), w[2], factor(32.0f / 45, w[0]));
    const vec odd3 = factor(16.0f / 45, w[1]);
    u[0] = w[0];
    add_and_sub(even1, odd1, u[1], u[2]);
    add_and_sub(even2, odd2, u[3], u[4]);
    add_and_sub(even3, odd3, u[5], u[6]);
    u[7] = w[2];
  }
};

// G^T: gradients of transformed taps to those of the three taps.
template <int M>
struct TapsGradientTransform;
template <>
struct TapsGradientTransform<4> {
  static constexpr int in = 6, out = 3;
  void operator()(const vec (&u)[6], vec (&w)[3]) const {
    const vec quarter = broadcast(1.0f / 4), sixth = broadcast(1.0f / 6);
    const vec twelfth = broadcast(1.0f / 12), twenty_fourth = broadcast(1.0f / 24);
    const vec even1 = add(u[1], u[2]), odd1 = sub(u[2], u[1]);
    const vec even2 = add(u[3], u[4]), odd2 = sub(u[3], u[4]);
    w[0] = fmadd(quarter, u[0], fnmadd(sixth, even1, mul(twenty_fourth, even2)));
    w[1] = fmadd(sixth, odd1, mul(twelfth, odd2));
    w[2] = add(fnmadd(sixth, even1, mul(sixth, even2)), u[5]);
  }
};

template <>
struct TapsGradientTransform<6> {
  static constexpr int in = 8, out = 3;
  void operator()(const vec (&u)[8], vec (&w)[3]) const {
    const auto times = [](float factor, vec a, vec b) { return fmadd(broadcast(factor), a, b); };
    const vec sum1 = add(u[1], u[2]), difference1 = sub(u[1], u[2]);
    const vec sum2 = add(u[3], u[4]), difference2 = sub(u[3], u[4]);
    const vec sum3 = add(u[5], u[6]), difference3 = sub(u[5], u[6]);
    w[0] = times(32.0f / 45, sum3, times(1.0f / 90, sum2, times(-2.0f / 9, sum1, u[0])));
    w[1] = times(16.0f / 45, difference3,
                 times(1.0f / 45, difference2, mul(broadcast(-2.0f / 9), difference1)));
    w[2] = times(8.0f / 45, sum3, times(2.0f / 45, sum2, times(-2.0f / 9, sum1, u[7])));
  }
};

// Applies a transform to the rows, then to the columns, of a square of vectors: row(i, values)
// reads row i, and element (i, j) of the result goes to to[(i * Out + j) * step].
template <class Transform, class Row>
inline void transform_square(Transform transform, const Row& row, float* to, int64_t step) {
  constexpr int In = Transform::in, Out = Transform::out;
  vec half[In][Out];
#pragma GCC unroll 8
  for (int i = 0; i < In; ++i) {
    vec values[In];
    row(i, values);
    transform(values, half[i]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < Out; ++j, to += step) {
    vec column[In], result[Out];
#pragma GCC unroll 8
    for (int i = 0; i < In; ++i) column[i] = half[i][j];
    transform(column, result);
    float* at = to;
#pragma GCC unroll 8
    for (int i = 0; i < Out; ++i, at += Out * step) store(at, result[i]);
  }
}

}  // namespace

}  // namespace pyconv::cpu::PYCONV_ISA
