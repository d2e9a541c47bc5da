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

// body(first, rows) for some rows at a time, which stay in the first-level cache.
template <class Body>
void for_rows(int64_t n, int64_t k, const Body& body) {
  constexpr int64_t values_per_item = 4 * 1024;
  parallel_ranges(n, max(1, values_per_item / k),
                  [&](int64_t begin, int64_t end) { body(begin, end - begin); });
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

// y = exp(x - max) for rows, NaN where x is; y may be x.
void exp_rows(int64_t rows, int64_t k, const float* x, float* y) {
  const int64_t size = rows * k;
  if (k >= 4 * lanes) {
    for (int64_t row = 0; row < size; row += k) {
      const vec most = broadcast(row_max(x + row, k));
      int64_t i = row;
      for (; i + lanes <= row + k; i += lanes) {
        store(y + i, exp_of_negative(sub(load(x + i), most)));
      }
      const int64_t rest = row + k - i;
      store_n(y + i, exp_of_negative(sub(load_n(x + i, rest), most)), rest);
    }
    return;
  }
  // Exponentials of short rows would wait for each other: first all differences. Of a vector that
  // goes beyond a row's end the next row overwrites the surplus, unless that is its x.
  for (int64_t row = 0; row < size; row += k) {
    const vec most = broadcast(row_max(x + row, k));
    const int64_t end = x == y ? row + k : size;
    for (int64_t i = row; i < row + k; i += lanes) {
      const int64_t part = min(lanes, end - i);
      store_part(y + i, sub(load_part(x + i, part), most), part);
    }
  }
  for (int64_t i = 0; i < size; i += lanes) {
    const int64_t part = min(lanes, size - i);
    store_part(y + i, exp_of_negative(load_part(y + i, part)), part);
  }
}

// Divides a row by its sum, which it returns; all becomes NaN if one is.
double normalize(int64_t k, float* y) {
  double sums[4] = {};  // an addition need not wait for the one before
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) {
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
  for_rows(n, k, [=](int64_t first, int64_t rows) {
    float* const to = y + first * k;
    exp_rows(rows, k, x + first * k, to);
    for (int64_t row = 0; row < rows; ++row) normalize(k, to + row * k);
  });
}

void softmax_backward(int64_t n, int64_t k, const float* dy, const float* y, float* dx) {
  for_rows(n, k, [=](int64_t first, int64_t rows) {
    for (int64_t row = first; row < first + rows; ++row) {
      const float* const g = dy + row * k;
      const float* const p = y + row * k;
      double dot = 0.0;
      for (int64_t i = 0; i < k; ++i) dot += static_cast<double>(g[i]) * static_cast<double>(p[i]);
      const float mean = static_cast<float>(dot);
      for (int64_t i = 0; i < k; ++i) dx[row * k + i] = p[i] * (g[i] - mean);
    }
  });
}

void softmax_cross_entropy(int64_t n, int64_t k, int64_t batch, const float* logits,
                           const float* labels, float* loss, float* probabilities, float* dlogits) {
  const float divisor = static_cast<float>(batch);
  for_rows(n, k, [=](int64_t first, int64_t rows) {
    exp_rows(rows, k, logits + first * k, probabilities + first * k);
    for (int64_t row = first; row < first + rows; ++row) {
      const float* const z = logits + row * k;
      const float* const t = labels + row * k;
      float* const p = probabilities + row * k;
      const double maximum = static_cast<double>(row_max(z, k));
      const double log_sum = log(normalize(k, p));
      double total = 0.0, sum = 0.0;
      for (int64_t i = 0; i < k; ++i) {
        const double label = static_cast<double>(t[i]);
        total += label;
        sum += label * (log_sum - (static_cast<double>(z[i]) - maximum));
      }
      loss[row] = static_cast<float>(sum);
      const float mass = static_cast<float>(total);
      for (int64_t i = 0; i < k; ++i) dlogits[row * k + i] = (p[i] * mass - t[i]) / divisor;
    }
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
