// ReLU by itself, forward and backward; convolution and dense layers have it built in.
//
//   relu           y = max(x, 0), NaN stays NaN       overwrites y (may be x)
//   relu_backward  dx = dy where y > 0, else 0        overwrites dx (may be dy)
#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

static constexpr int64_t piece = 16 * 1024;

// Not at_least, which takes a denormal for a zero, but gives it as it is.
static inline vec positive(vec x) {
  vec best = zero(), at = zero();
  keep_maximum(x, at, best, at);
  return best;
}

void relu(int64_t size, const float* x, float* y) {
  parallel_ranges(size, piece, [&](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) store(y + i, positive(load(x + i)));
    store_n(y + i, positive(load_n(x + i, end - i)), end - i);
  });
}

void relu_backward(int64_t size, const float* dy, const float* y, float* dx) {
  parallel_ranges(size, piece, [&](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) store(dx + i, where_positive(load(y + i), load(dy + i)));
    store_n(dx + i, where_positive(load_n(y + i, end - i), load_n(dy + i, end - i)), end - i);
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
