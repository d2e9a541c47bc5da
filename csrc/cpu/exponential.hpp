// The exponential function on vectors.
#pragma once

#include "isa.hpp"

namespace pyconv::cpu::PYCONV_ISA {

// x = n ln 2 + r with a whole number n and |r| <= ln(2) / 2. The first part of ln 2 has so few bits
// that its product with n is exact, as is the first difference. (W. Cody, W. Waite, "Software
// Manual for the Elementary Functions", 1980.)
struct Reduced {
  vec n, r;
};
static inline Reduced reduce(vec x) {
  const vec shift = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const vec n = sub(add(mul(x, broadcast(1.44269504f)), shift), shift);
  const vec r = fnmadd(n, broadcast(-2.12194440e-4f), fnmadd(n, broadcast(0.693359375f), x));
  return {n, r};
}

// exp(r) - 1 for |r| <= ln(2) / 2, as r + r^2 P(r). P is the minimax polynomial, which is off by
// 2^-28 of exp.
static inline vec exp_less_1(vec r) {
  vec p = broadcast(0x1.6a23d0p-10f);
  p = fmadd(p, r, broadcast(0x1.123a20p-7f));
  p = fmadd(p, r, broadcast(0x1.5558f2p-5f));
  p = fmadd(p, r, broadcast(0x1.555492p-3f));
  p = fmadd(p, r, broadcast(0x1.fffffcp-2f));
  return fmadd(mul(r, r), p, r);
}

// exp(x) for x <= 0. The power of 2 takes a detour, because 2^n may be too small for a float.
static inline vec exp_of_negative(vec x) {
  const Reduced of = reduce(at_least(broadcast(-104.0f), x));  // exp(-104) rounds to 0
  const vec power = power_of_2(add(of.n, broadcast(64.0f)));
  return mul(fmadd(power, exp_less_1(of.r), power), broadcast(0x1p-64f));
}

}  // namespace pyconv::cpu::PYCONV_ISA
