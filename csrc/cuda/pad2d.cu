// Zero padding, and its gradient.
//
//   pad2d   y = x with rows and columns of zeros around it    overwrites y
//
// x [n, h, w, c], y [n, oh, ow, c]. Where padding is negative, rows and columns are left out
// instead, which is the gradient. A thread copies one pixel of the result, in one channel or four.
#include "images.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;

template <int lanes>
__global__ void __launch_bounds__(threads)
    pad_kernel(Pad2dShape s, const Pack<float, lanes>* __restrict__ x,
               Pack<float, lanes>* __restrict__ y) {
  const int64_t packs = s.c / lanes;
  for_each_index(s.n * s.oh * s.ow * packs, [&](int64_t index) {
    const Place p(index, s.oh, s.ow, packs);
    const int64_t row = p.row - s.pad_top, column = p.column - s.pad_left;
    const bool inside = row >= 0 && row < s.h && column >= 0 && column < s.w;
    y[index] =
        inside ? x[((p.n * s.h + row) * s.w + column) * packs + p.pack] : Pack<float, lanes>{};
  });
}

template <int lanes>
const KernelOf pad{"pad2d", pad_kernel<lanes>, threads,
                   lanes == 4 ? " (4 channels)" : " (1 channel)"};

template <int lanes>
void launch(const Pad2dShape& s, const float* x, float* y) {
  pad<lanes>(grid_for(s.n * s.oh * s.ow * (s.c / lanes), threads), s, packed<lanes>(x),
             packed<lanes>(y));
}

}  // namespace

void pad2d(const Pad2dShape& s, const float* x, float* y) {
  if (s.n == 0) return;
  const bool fours = s.c % 4 == 0 && aligned_to_four(x) && aligned_to_four(y);
  (fours ? launch<4> : launch<1>)(s, x, y);
}

}  // namespace pyconv::cuda
