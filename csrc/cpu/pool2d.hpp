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

// body<vectors>(c, count) for the channels [begin, end): `count` of each of the vectors from c on,
// which is all of them but at the end.
template <class Body>
static inline void for_channels(int64_t begin, int64_t end, const Body& body) {
  constexpr int many = lanes < 16 ? 8 : 4, some = many / 2;
  int64_t c = begin;
  for (; c + many * lanes <= end; c += many * lanes) body.template operator()<many>(c, lanes);
  for (; c + some * lanes <= end; c += some * lanes) body.template operator()<some>(c, lanes);
  for (; c < end; c += lanes) body.template operator()<1>(c, min(lanes, end - c));
}

}  // namespace pyconv::cpu::PYCONV_ISA
