// What maximum and average pooling share: which windows are around a pixel.
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

}  // namespace pyconv::cpu::PYCONV_ISA
