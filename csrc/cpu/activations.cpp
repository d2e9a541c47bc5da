// Activations with an exponential in them, and the leaky ReLU, forward and backward.
//
//               y                                   dy / dx, of y
//   sigmoid     1 / (1 + exp(-x))                   y (1 - y)
//   tanh        (exp(2x) - 1) / (exp(2x) + 1)       (1 - y) (1 + y)
//   leaky_relu  x where x > 0, else slope * x       1 where y > 0, else slope
//   softplus    log(1 + exp(x))                     1 - exp(-y)
//
//   activate           y = f(x)                     overwrites y (may be x)
//   activate_backward  dx = dy * f'                 overwrites dx (may be dy or y)
//
// Exponentials are taken of -|x| only: nothing overflows, and for large |x| what is left is the
// limit. Where 1 - exp would cancel, exp - 1 is computed as such. NaN stays NaN. How many roundings
// a result shows is counted in docs/correctness.md.
#include "exponential.hpp"
#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

constexpr int64_t piece = 16 * 1024;

// exp(x) - 1 for x <= 0.
vec expm1_of_negative(vec x) {
  const Reduced of = reduce(at_least(broadcast(-80.0f), x));  // -1 from far above
  const vec power = power_of_2(of.n);
  return fmadd(power, exp_less_1(of.r), sub(power, broadcast(1.0f)));
}

// log(1 + t) for 0 <= t <= 1, as 2 artanh(s) = 2 s (1 + s^2 Q(s^2)) with s = t / (2 + t) <= 1/3. Q
// is the minimax polynomial, off by 2^-30. For the smallest t the result is t, since 2 s is, where
// s would lose bits.
vec log1p_of_fraction(vec t) {
  const vec half = broadcast(0.5f);
  const vec twice = div(t, fmadd(half, t, broadcast(1.0f))), s = mul(half, twice);
  const vec z = mul(s, s);
  vec q = broadcast(0x1.f1b2c0p-4f);
  q = fmadd(q, z, broadcast(0x1.b6d5b2p-4f));
  q = fmadd(q, z, broadcast(0x1.25097cp-3f));
  q = fmadd(q, z, broadcast(0x1.9996a8p-3f));
  q = fmadd(q, z, broadcast(0x1.555558p-2f));
  return fmadd(mul(twice, z), q, twice);
}

vec negative(vec x) { return sub(zero(), x); }
vec minus_magnitude(vec x) { return negative(at_least(negative(x), x)); }

vec sigmoid_of(vec x) {
  const vec one = broadcast(1.0f), t = exp_of_negative(minus_magnitude(x));
  return div(select_positive(x, one, t), add(one, t));
}

vec tanh_of(vec x) {
  const vec half = minus_magnitude(x);
  const vec m = negative(expm1_of_negative(add(half, half)));
  const vec y = div(m, sub(broadcast(2.0f), m));
  return select_positive(x, y, negative(y));
}

vec softplus_of(vec x) {
  const vec rest = log1p_of_fraction(exp_of_negative(minus_magnitude(x)));
  return add(at_least(zero(), x), rest);
}

// y = f(x), element by element.
template <class Function>
void map(int64_t size, const float* x, float* y, const Function& f) {
  parallel_ranges(size, piece, [&](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) store(y + i, f(load(x + i)));
    store_n(y + i, f(load_n(x + i, end - i)), end - i);
  });
}

// dx = f(dy, y), element by element.
template <class Function>
void map(int64_t size, const float* dy, const float* y, float* dx, const Function& f) {
  parallel_ranges(size, piece, [&](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) store(dx + i, f(load(dy + i), load(y + i)));
    store_n(dx + i, f(load_n(dy + i, end - i), load_n(y + i, end - i)), end - i);
  });
}

}  // namespace

void activate(int64_t size, Pointwise function, float slope, const float* x, float* y) {
  switch (function) {
    case Pointwise::sigmoid:
      return map(size, x, y, [](vec v) { return sigmoid_of(v); });
    case Pointwise::tanh:
      return map(size, x, y, [](vec v) { return tanh_of(v); });
    case Pointwise::leaky_relu:
      return map(size, x, y,
                 [&](vec v) { return select_positive(v, v, mul(broadcast(slope), v)); });
    case Pointwise::softplus:
      return map(size, x, y, [](vec v) { return softplus_of(v); });
  }
}

void activate_backward(int64_t size, Pointwise function, float slope, const float* dy,
                       const float* y, float* dx) {
  const vec one = broadcast(1.0f);
  switch (function) {
    case Pointwise::sigmoid:
      return map(size, dy, y, dx, [&](vec g, vec v) { return mul(g, mul(v, sub(one, v))); });
    case Pointwise::tanh:
      return map(size, dy, y, dx,
                 [&](vec g, vec v) { return mul(g, mul(sub(one, v), add(one, v))); });
    case Pointwise::leaky_relu:
      return map(size, dy, y, dx,
                 [&](vec g, vec v) { return select_positive(v, g, mul(broadcast(slope), g)); });
    case Pointwise::softplus:
      return map(size, dy, y, dx,
                 [](vec g, vec v) { return mul(g, negative(expm1_of_negative(negative(v)))); });
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
