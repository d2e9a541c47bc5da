// Affine warps of images; see warp_affine.cpp.
#pragma once

#include <cstdint>

namespace pyconv::cpu {

// What stands outside the image, as scipy.ndimage means it.
enum class FillMode : int { nearest, constant, reflect, wrap };

struct WarpShape {
  int64_t n, h, w, c;  // out: [n, h, w, c]
};

// out[i] = source[indices[i]], warped by matrices[i], for i in [0, n). On at most `threads`
// threads.
void warp_affine(const WarpShape& shape, FillMode fill, float cval, const float* source,
                 const int64_t* indices, const double* matrices, float* out, int threads);

}  // namespace pyconv::cpu
