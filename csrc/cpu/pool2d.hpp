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

// body<V>(c, last, count) for the channels [begin, end): V vectors of them from c on, `count`
// channels in each, which is all lanes unless there are fewer channels than that. The last of them
// begins `last` behind the first, where it is whole, with some channels once more. Of the most
// vectors it has its usual place: a variable one would cost an address.
constexpr int most_vectors = lanes < 16 ? 8 : 4;

template <int V, class Body>
__attribute__((always_inline)) static inline void for_vectors(int64_t vectors, int64_t c,
                                                              int64_t last, const Body& body) {
  if (vectors == V) {
    body.template operator()<V>(c, last, lanes);
  } else if constexpr (V > 2) {
    for_vectors<V - 1>(vectors, c, last, body);
  }
}
template <class Body>
__attribute__((always_inline)) static inline void for_channels(int64_t begin, int64_t end,
                                                               const Body& body) {
  if (end - begin < lanes) {
    body.template operator()<1>(begin, 0, end - begin);
    return;
  }
  int64_t c = begin;
  for (; c + most_vectors * lanes <= end; c += most_vectors * lanes) {
    body.template operator()<most_vectors>(c, 0, lanes);
  }
  const int64_t vectors = min(ceil_div(end - c, lanes), most_vectors - 1);
  if (vectors > 1) {
    const int64_t channels = min(end - c, vectors * lanes);
    for_vectors<most_vectors - 1>(vectors, c, channels - lanes, body);
    c += channels;
  }
  if (c < end) body.template operator()<1>(end - lanes, 0, lanes);
}
// Where vector v of V begins.
template <int V>
static inline int64_t vector_begin(int v, int64_t last) {
  return V < most_vectors && v == V - 1 ? last : v * lanes;
}

}  // namespace pyconv::cpu::PYCONV_ISA
