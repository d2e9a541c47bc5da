// Rounding to bfloat16, as float32 numbers: what layers work on whose policy is mixed_bfloat16.
//
//   round_bfloat16  y = the nearest number of bfloat16    overwrites y (may be x)
//
// A bfloat16 is the upper half of a float32: sign, 8 bits of exponent, 7 of the mantissa. Adding
// 0x7fff, and 1 more where the upper half is odd, carries into it exactly where rounding to the
// nearest, of two to the even one, goes up; from the largest numbers on into infinity. NaN keeps
// its sign and becomes quiet, since a carry could make it a number. In integers, so that every path
// gives the same bits, denormals included: AVX512-BF16's own conversion takes those for zeros.
//
// Source: S. Wang and P. Kanwar, "BFloat16: The secret to high performance on Cloud TPUs", Google
// Cloud Blog, 2019; IEEE 754-2019, 4.3.1 (roundTiesToEven).
#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

void round_bfloat16(int64_t size, const float* x, float* y) {
  constexpr int64_t piece = 16 * 1024;
  parallel_ranges(size, piece, [=](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) store(y + i, nearest_bfloat16(load(x + i)));
    store_n(y + i, nearest_bfloat16(load_n(x + i, end - i)), end - i);
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
