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

#include "exponential.hpp"
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

// The maximum of a row but for NaNs, which softmax_row finds.
float row_max(const float* x, int64_t k) {
  float best = -HUGE_VALF;
  int64_t i = 0;
  if (k >= 4 * lanes) {
    vec bests = broadcast(best);
    for (; i + lanes <= k; i += lanes) bests = at_least(load(x + i), bests);
    float each[lanes];
    store(each, bests);
    for (int64_t j = 0; j < lanes; ++j) best = each[j] > best ? each[j] : best;
  }
  for (; i < k; ++i) best = x[i] > best ? x[i] : best;
  return best;
}

// y = softmax(x) for one row, all NaN if it holds one; returns the sum of exp(x - max).
double softmax_row(const float* x, int64_t k, float maximum, float* y) {
  const vec most = broadcast(maximum);
  int64_t i = 0;
  for (; i + lanes <= k; i += lanes) store(y + i, exp_of_negative(sub(load(x + i), most)));
  if (i < k) store_n(y + i, exp_of_negative(sub(load_n(x + i, k - i), most)), k - i);
  double sums[4] = {};  // an addition need not wait for the one before
  for (i = 0; i + 4 <= k; i += 4) {
    for (int64_t j = 0; j < 4; ++j) sums[j] += static_cast<double>(y[i + j]);
  }
  for (int64_t j = 0; i + j < k; ++j) sums[j] += static_cast<double>(y[i + j]);
  const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  const float scale = static_cast<float>(1.0 / sum);
  for (i = 0; i < k; ++i) y[i] *= scale;
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
