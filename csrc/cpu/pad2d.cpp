// Zero padding, and its gradient.
//
//   pad2d   y = x with rows and columns of zeros around it    overwrites y
//
// x [n, h, w, c], y [n, oh, ow, c]. Where padding is negative, rows and columns are left out
// instead, which is the gradient.
#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

void pad2d(const Pad2dShape& s, const float* x, float* y) {
  // The columns [begin, end) of y that x has.
  const int64_t begin = min(max(0, s.pad_left), s.ow);
  const int64_t end = max(begin, min(s.ow, s.w + s.pad_left));
  parallel_ranges(s.n * s.oh, max(1, 16 * 1024 / (s.ow * s.c)), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t n = row / s.oh, ih = row % s.oh - s.pad_top;
      float* const to = y + row * s.ow * s.c;
      if (ih < 0 || ih >= s.h || begin == end) {
        clear(to, s.ow * s.c);
        continue;
      }
      clear(to, begin * s.c);
      copy(to + begin * s.c, x + ((n * s.h + ih) * s.w + begin - s.pad_left) * s.c,
           (end - begin) * s.c);
      clear(to + end * s.c, (s.ow - end) * s.c);
    }
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
