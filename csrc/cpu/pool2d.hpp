// What maximum and average pooling share: which windows are around a pixel, and how many
// channels are taken at once.
#pragma once

#include "isa.hpp"

namespace pyconv::cpu::PYCONV_ISA {

// [begin, end)
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The windows around a position, along one axis; `at` counts from the edge of the padding.
static inline Range windows_around(int64_t at, int64_t pool, int64_t stride, int64_t windows) {
  return {at < pool ? 0 : (at - pool) / stride + 1, min(at / stride + 1, windows)};
}

// body<V>(c, second, count) for the channels [begin, end): V vectors of them from c on, `count`
// channels in each, which is all lanes unless there are fewer channels than that. Of two vectors
// the second begins `second` behind the first: at the end where it is whole, with some channels
// once more.
template <class Body>
__attribute__((always_inline)) static inline void for_channels(int64_t begin, int64_t end,
                                                               const Body& body) {
  constexpr int many = lanes < 16 ? 8 : 4, some = many / 2;
  int64_t c = begin;
  if (end - begin < lanes) {
    body.template operator()<1>(c, lanes, end - begin);
    return;
  }
  for (; c + many * lanes <= end; c += many * lanes) {
    body.template operator()<many>(c, lanes, lanes);
  }
  for (; c + some * lanes <= end; c += some * lanes) {
    body.template operator()<some>(c, lanes, lanes);
  }
  for (; c + lanes < end; c += 2 * lanes) {
    body.template operator()<2>(c, min(lanes, end - lanes - c), lanes);
  }
  if (c < end) body.template operator()<1>(end - lanes, lanes, lanes);
}
// Where vector v of V begins.
template <int V>
static inline int64_t vector_begin(int v, int64_t second) {
  return V == 2 && v == 1 ? second : v * lanes;
}

}  // namespace pyconv::cpu::PYCONV_ISA
