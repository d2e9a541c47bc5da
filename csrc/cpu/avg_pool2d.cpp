// Average pooling, forward and backward.
//
//   avg_pool2d           y  = mean of the window's pixels in the image        overwrites y
//   avg_pool2d_backward  dx = sum of dy / pixels over the windows around it   overwrites dx
//
// x [n, h, w, c], y and dy [n, oh, ow, c]. Padding does not count. Lanes run along the channels.
//
// A window's rows are summed one by one and then added up, so that over a whole image of h x w the
// rounding errors are those of h + w additions, not h * w. Every element of dx looks for its own
// windows and is written once, whether they overlap or not.
#include "operations.hpp"
#include "pool2d.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// What a window from `start` has of the image, along one axis.
Range inside(int64_t start, int64_t pool, int64_t size) {
  return {max(0, start), min(start + pool, size)};
}

// y = mean of these rows and columns of the image; from one to the next are `line` and `pixel`
// floats. Vectors as of for_channels.
template <int vectors>
void mean(const float* x, const Range& rows, const Range& cols, int64_t line, int64_t pixel,
          int64_t last, int64_t count, float* y) {
  const auto begin = [=](int q) { return vector_begin<vectors>(q, last); };
  vec total[vectors];
  for (int q = 0; q < vectors; ++q) total[q] = zero();
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    vec sum[vectors];
    for (int q = 0; q < vectors; ++q) sum[q] = zero();
    for (int64_t j = cols.begin; j < cols.end; ++j) {
      const float* const at = x + i * line + j * pixel;
      for (int q = 0; q < vectors; ++q) sum[q] = add(sum[q], load_part(at + begin(q), count));
    }
    for (int q = 0; q < vectors; ++q) total[q] = add(total[q], sum[q]);
  }
  const vec pixels = broadcast(static_cast<float>(rows.size() * cols.size()));
  for (int q = 0; q < vectors; ++q) store_part(y + begin(q), div(total[q], pixels), count);
}

// dx = sum of the windows' dy, each divided by its pixels.
template <int vectors>
void collect(const Pool2dShape& s, const float* dy, const Range& windows_h, const Range& windows_w,
             int64_t last, int64_t count, float* dx) {
  const auto begin = [=](int q) { return vector_begin<vectors>(q, last); };
  vec sum[vectors];
  for (int q = 0; q < vectors; ++q) sum[q] = zero();
  for (int64_t oh = windows_h.begin; oh < windows_h.end; ++oh) {
    const int64_t rows = inside(oh * s.stride_h - s.pad_top, s.pool_h, s.h).size();
    for (int64_t ow = windows_w.begin; ow < windows_w.end; ++ow) {
      const int64_t cols = inside(ow * s.stride_w - s.pad_left, s.pool_w, s.w).size();
      const vec share = broadcast(1.0f / static_cast<float>(rows * cols));
      const float* const at = dy + (oh * s.ow + ow) * s.c;
      for (int q = 0; q < vectors; ++q) {
        sum[q] = fmadd(load_part(at + begin(q), count), share, sum[q]);
      }
    }
  }
  for (int q = 0; q < vectors; ++q) store_part(dx + begin(q), sum[q], count);
}

}  // namespace

void avg_pool2d(const Pool2dShape& s, const float* x, float* y) {
  const OneThread alone(s.n * s.h * s.w * s.c <= few_values);
  parallel_rows(s.n * s.oh, s.c, [&](int64_t first, int64_t last, int64_t c0, int64_t c1) {
    for (int64_t row = first; row < last; ++row) {
      const float* const image = x + row / s.oh * s.h * s.w * s.c;
      const Range rows = inside(row % s.oh * s.stride_h - s.pad_top, s.pool_h, s.h);
      for (int64_t ow = 0; ow < s.ow; ++ow) {
        const Range cols = inside(ow * s.stride_w - s.pad_left, s.pool_w, s.w);
        float* const to = y + (row * s.ow + ow) * s.c;
        for_channels(c0, c1, [&]<int vectors>(int64_t c, int64_t last_at, int64_t count) {
          mean<vectors>(image + c, rows, cols, s.w * s.c, s.c, last_at, count, to + c);
        });
      }
    }
  });
}

void avg_pool2d_backward(const Pool2dShape& s, const float* dy, float* dx) {
  const OneThread alone(s.n * s.h * s.w * s.c <= few_values);
  parallel_rows(s.n * s.h, s.c, [&](int64_t first, int64_t last, int64_t c0, int64_t c1) {
    for (int64_t row = first; row < last; ++row) {
      const float* const image = dy + row / s.h * s.oh * s.ow * s.c;
      const Range windows_h = windows_around(row % s.h + s.pad_top, s.pool_h, s.stride_h, s.oh);
      for (int64_t iw = 0; iw < s.w; ++iw) {
        const Range windows_w = windows_around(iw + s.pad_left, s.pool_w, s.stride_w, s.ow);
        float* const to = dx + (row * s.w + iw) * s.c;
        for_channels(c0, c1, [&]<int vectors>(int64_t c, int64_t last_at, int64_t count) {
          collect<vectors>(s, image + c, windows_h, windows_w, last_at, count, to + c);
        });
      }
    }
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
