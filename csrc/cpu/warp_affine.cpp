// Affine warps of a batch of images, what augments a data set: rotations, shifts, shears, zooms and
// flips are one matrix an image.
//
//   out[i, row, column, :] = source[indices[i], y, x, :]                         overwrites out
//   y = m[0, 2] + m[0, 0] * row + m[0, 1] * column,   m = matrices[i], 2 x 3,
//   x = m[1, 2] + m[1, 0] * row + m[1, 1] * column    row-major
//
// So m says where a pixel of the result comes from. source [*, h, w, c], out [n, h, w, c]. Between
// pixels the value is interpolated, along y first, then along x; outside the image it is
//   nearest   that of the nearest pixel                a a a | a b c d | d d d
//   constant  cval, from the first step outwards       k k k | a b c d | k k k
//   reflect   the image's mirror image                 c b a | a b c d | d c b
//   wrap      the image again, with its last pixel on its first, as scipy.ndimage's "wrap":
//             its period is one less than its size     b c d | a b c d | b c d
//
// Coordinates are double and summed in the order above, which is scipy's as well, because
// "constant" and "wrap" have edges that half an ulp decides. Pixels are mixed in float. A pixel
// whose weight is 0 is not looked at: shifts by whole pixels and flips move bits, whatever they
// stand for.
//
// Compiled once, not for every instruction set: most of the time goes into fetching pixels one by
// one, three floats each, which longer vectors do no faster.
#include "warp_affine.hpp"

#include <algorithm>
#include <cmath>

#include "runtime.hpp"

namespace pyconv::cpu {

namespace {

constexpr int64_t pixels_per_item = 4 * 1024;

bool inside(double at, int64_t size) { return at >= 0 && at <= static_cast<double>(size - 1); }

// The coordinate within [0, size - 1] where the value for `at` stands. NaN becomes 0: coordinates
// may overflow, and must not lead anywhere else.
template <FillMode fill>
double into_image(double at, int64_t size) {
  if (inside(at, size)) return at;
  const double last = static_cast<double>(size - 1);
  if constexpr (fill == FillMode::reflect) {
    const double period = static_cast<double>(2 * size);
    at -= period * std::floor((at + 0.5) / period);  // from -0.5 to period - 0.5
    at = std::min(at, period - 1 - at);
  }
  if constexpr (fill == FillMode::wrap) {
    // A multiple of the period is the first pixel on the right and the last one on the left.
    at -= last * (at < 0 ? -std::floor(-at / last) - 1 : std::floor(at / last));
  }
  return at > 0 ? std::min(at, last) : 0;
}

// One axis of a pixel: its value is mixed of what stands at `first` and at `first + next`.
struct Tap {
  int64_t first;  // offset in the image, or -1: outside, where the value is cval
  int64_t next;   // 0 if the weight is 0, where there may be no neighbour
  float weight;
};

// The tap for a coordinate along an axis of this size, whose pixels are `step` floats apart.
template <FillMode fill>
Tap tap(double at, int64_t size, int64_t step) {
  if (fill == FillMode::constant && !inside(at, size)) return {-1, 0, 0};
  at = into_image<fill>(at, size);
  const int64_t first = static_cast<int64_t>(at);
  const float weight = static_cast<float>(at - static_cast<double>(first));
  return {first * step, weight == 0 ? 0 : step, weight};
}

float mix(float a, float b, float weight) { return weight == 0 ? a : a + weight * (b - a); }

// Rows [begin, end) of one image. `channels` is the image's number of them, or 0: any.
template <FillMode fill, int channels>
void warp_rows(const WarpShape& s, float cval, const float* image, const double* m, float* out,
               int64_t begin, int64_t end) {
  const int64_t c = channels > 0 ? channels : s.c;
  for (int64_t row = begin; row < end; ++row) {
    const double y = m[2] + m[0] * static_cast<double>(row);
    const double x = m[5] + m[3] * static_cast<double>(row);
    float* to = out + row * s.w * c;
    for (int64_t column = 0; column < s.w; ++column, to += c) {
      const Tap down = tap<fill>(y + m[1] * static_cast<double>(column), s.h, s.w * c);
      const Tap right = tap<fill>(x + m[4] * static_cast<double>(column), s.w, c);
      if (down.first < 0 || right.first < 0) {
        std::fill(to, to + c, cval);
        continue;
      }
      const float* const a = image + down.first + right.first;
      const float* const b = a + right.next;
      if (down.next != 0 && right.next != 0) {  // nearly always
        for (int64_t i = 0; i < c; ++i) {
          const float left_of = a[i] + down.weight * (a[i + down.next] - a[i]);
          const float right_of = b[i] + down.weight * (b[i + down.next] - b[i]);
          to[i] = left_of + right.weight * (right_of - left_of);
        }
        continue;
      }
      for (int64_t i = 0; i < c; ++i) {
        to[i] = mix(mix(a[i], a[i + down.next], down.weight),
                    mix(b[i], b[i + down.next], down.weight), right.weight);
      }
    }
  }
}

// The same where rows stay rows and columns columns, m[0, 1] = m[1, 0] = 0: shifts, zooms and
// flips. Taps are found once a column and once a row, and rows are mixed as a whole, in vectors.
template <FillMode fill, int channels>
void warp_upright_rows(const WarpShape& s, float cval, const float* image, const double* m,
                       float* out, int64_t begin, int64_t end) {
  const int64_t c = channels > 0 ? channels : s.c, width = s.w * c;
  void* const memory =
      scratch(static_cast<size_t>(s.w) * sizeof(Tap) + static_cast<size_t>(width) * sizeof(float),
              ScratchUse::worker);
  Tap* const taps = static_cast<Tap*>(memory);
  float* const mixed = reinterpret_cast<float*>(taps + s.w);
  for (int64_t column = 0; column < s.w; ++column) {
    taps[column] = tap<fill>(m[5] + m[4] * static_cast<double>(column), s.w, c);
  }
  for (int64_t row = begin; row < end; ++row) {
    const Tap down = tap<fill>(m[2] + m[0] * static_cast<double>(row), s.h, width);
    float* to = out + row * width;
    if (down.first < 0) {
      std::fill(to, to + width, cval);
      continue;
    }
    const float* source = image + down.first;
    if (down.next != 0) {
      for (int64_t i = 0; i < width; ++i) {
        mixed[i] = source[i] + down.weight * (source[i + width] - source[i]);
      }
      source = mixed;
    }
    for (int64_t column = 0; column < s.w; ++column, to += c) {
      const Tap right = taps[column];
      if (right.first < 0) {
        std::fill(to, to + c, cval);
        continue;
      }
      const float* const a = source + right.first;
      for (int64_t i = 0; i < c; ++i) to[i] = mix(a[i], a[i + right.next], right.weight);
    }
  }
}

using WarpRows = void (*)(const WarpShape&, float, const float*, const double*, float*, int64_t,
                          int64_t);

template <FillMode fill>
WarpRows for_channels(int64_t channels, bool upright) {
  switch (channels) {
    case 1:
      return upright ? warp_upright_rows<fill, 1> : warp_rows<fill, 1>;
    case 3:
      return upright ? warp_upright_rows<fill, 3> : warp_rows<fill, 3>;
    default:
      return upright ? warp_upright_rows<fill, 0> : warp_rows<fill, 0>;
  }
}

WarpRows choose(FillMode fill, int64_t channels, bool upright) {
  switch (fill) {
    case FillMode::constant:
      return for_channels<FillMode::constant>(channels, upright);
    case FillMode::reflect:
      return for_channels<FillMode::reflect>(channels, upright);
    case FillMode::wrap:
      return for_channels<FillMode::wrap>(channels, upright);
    default:
      return for_channels<FillMode::nearest>(channels, upright);
  }
}

}  // namespace

void warp_affine(const WarpShape& shape, FillMode fill, float cval, const float* source,
                 const int64_t* indices, const double* matrices, float* out, int threads) {
  const int64_t size = shape.h * shape.w * shape.c;
  const int64_t rows = std::max<int64_t>(1, pixels_per_item / shape.w);
  const int64_t items = (shape.h + rows - 1) / rows;  // of an image
  parallel_for(threads, shape.n * items, [&](int64_t item, int) {
    const int64_t i = item / items, begin = item % items * rows;
    const double* const m = matrices + 6 * i;
    const WarpRows warp = choose(fill, shape.c, m[1] == 0 && m[3] == 0);
    warp(shape, cval, source + indices[i] * size, m, out + i * size, begin,
         std::min(begin + rows, shape.h));
  });
}

}  // namespace pyconv::cpu
