// What the kernels share that look at the pixels of images one by one.
#pragma once

#include "launch.cuh"

namespace pyconv::cuda {

// Where element `index` of an array [n, rows, columns, packs] is.
struct Place {
  int64_t n, row, column, pack;
  __device__ __forceinline__ Place(int64_t index, int64_t rows, int64_t columns, int64_t packs) {
    const int64_t pixel = index / packs, line = pixel / columns;
    pack = index - pixel * packs;
    column = pixel - line * columns;
    n = line / rows;
    row = line - n * rows;
  }
};

// [begin, end)
struct Range {
  int64_t begin, end;
};

// The positions of a window from `start` that lie in an image of `size`, along one axis.
__device__ __forceinline__ Range positions_inside(int64_t start, int64_t pool, int64_t size) {
  return {start < 0 ? -start : 0, size - start < pool ? size - start : pool};
}

// The windows that contain a pixel, along one axis; `at` counts from the edge of the padding.
__device__ __forceinline__ Range windows_around(int64_t at, int64_t pool, int64_t stride,
                                                int64_t windows) {
  const int64_t end = at / stride + 1;
  return {at < pool ? 0 : (at - pool) / stride + 1, end < windows ? end : windows};
}

template <int lanes, class T>
auto packed(T* p) {
  return reinterpret_cast<Pack<T, lanes>*>(p);
}
template <int lanes, class T>
auto packed(const T* p) {
  return reinterpret_cast<const Pack<T, lanes>*>(p);
}

}  // namespace pyconv::cuda
