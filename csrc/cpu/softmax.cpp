// Softmax over rows of k values, and the categorical cross-entropy fused with it.
//
//   softmax                y = exp(x - max) / sum                              overwrites y
//   softmax_backward       dx = y * (dy - sum(dy * y))                         overwrites dx
//   softmax_cross_entropy  loss = sum t * (log sum exp(z) - z)  per row,
//                          dz = (softmax(z) * sum(t) - t) / batch              overwrites all three
//
// With a batch of n, dz is the gradient of the mean loss over the rows. Subtracting the row's
// maximum keeps exp in range for any finite logits, and the loss never takes the logarithm of a
// probability that may have underflowed. Sums over a row are double: a row is short, and the sum is
// what errors build up in.
#include <math.h>

#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

constexpr int64_t values_per_item = 4 * 1024;

template <class Body>
void for_rows(int64_t n, int64_t k, const Body& body) {
  parallel_ranges(n, max(1, values_per_item / k), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

// The maximum of a row, NaN if it holds one.
float row_max(const float* x, int64_t k) {
  float best = x[0];
  for (int64_t i = 1; i < k; ++i) {
    if (!(x[i] <= best) && best == best) best = x[i];
  }
  return best;
}

// y = softmax(x) for one row; returns the sum of exp(x - max).
double softmax_row(const float* x, int64_t k, float maximum, float* y) {
  double sum = 0.0;
  for (int64_t i = 0; i < k; ++i) {
    y[i] = expf(x[i] - maximum);
    sum += static_cast<double>(y[i]);
  }
  const float scale = static_cast<float>(1.0 / sum);
  for (int64_t i = 0; i < k; ++i) y[i] *= scale;
  return sum;
}

}  // namespace

void softmax(int64_t n, int64_t k, const float* x, float* y) {
  for_rows(n, k,
           [&](int64_t row) { softmax_row(x + row * k, k, row_max(x + row * k, k), y + row * k); });
}

void softmax_backward(int64_t n, int64_t k, const float* dy, const float* y, float* dx) {
  for_rows(n, k, [&](int64_t row) {
    const float* const g = dy + row * k;
    const float* const p = y + row * k;
    double dot = 0.0;
    for (int64_t i = 0; i < k; ++i) dot += static_cast<double>(g[i]) * static_cast<double>(p[i]);
    const float mean = static_cast<float>(dot);
    for (int64_t i = 0; i < k; ++i) dx[row * k + i] = p[i] * (g[i] - mean);
  });
}

void softmax_cross_entropy(int64_t n, int64_t k, int64_t batch, const float* logits,
                           const float* labels, float* loss, float* probabilities, float* dlogits) {
  const float divisor = static_cast<float>(batch);
  for_rows(n, k, [&](int64_t row) {
    const float* const z = logits + row * k;
    const float* const t = labels + row * k;
    float* const p = probabilities + row * k;
    const float maximum = row_max(z, k);
    const double log_sum = log(softmax_row(z, k, maximum, p));
    double total = 0.0, sum = 0.0;
    for (int64_t i = 0; i < k; ++i) {
      const double label = static_cast<double>(t[i]);
      total += label;
      sum += label * (log_sum - (static_cast<double>(z[i]) - static_cast<double>(maximum)));
    }
    loss[row] = static_cast<float>(sum);
    const float mass = static_cast<float>(total);
    for (int64_t i = 0; i < k; ++i) dlogits[row * k + i] = (p[i] * mass - t[i]) / divisor;
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
