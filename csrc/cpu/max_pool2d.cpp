// Max pooling, forward and backward.
//
//   max_pool2d           y = max over the window, argmax = where    overwrites y, argmax
//   max_pool2d_backward  dx = dy at the argmax, else 0              overwrites dx
//
// x [n, h, w, c], y, dy and argmax [n, oh, ow, c]; argmax counts the window's positions row by row,
// in a uint8_t or, for windows of more than 256 positions, an int32_t, and may be null. The first
// maximum wins; a NaN wins over every number and the first NaN over later ones; padding never wins.
//
// Backward, a pixel compares its position with the argmax of the windows around it, many channels
// at a time, and is written once. Where many windows overlap, or channels are few, it is less work
// to go from each value to the pixel that it came from.
#include "operations.hpp"
#include "pool2d.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// The part of a window that lies in the image: positions [begin, end) along one axis.
struct Clip {
  int64_t begin, end;
};
Clip clip(int64_t start, int64_t pool, int64_t size) {
  return {max(0, -start), min(pool, size - start)};
}

// The maxima of V vectors of channels, the last of which may be a part of one, stay in registers
// while the window goes by.
template <int V>
void forward_vectors(const Pool2dShape& s, const Clip& rows, const Clip& cols, const float* x,
                     int64_t channels, float* y, uint8_t* argmax) {
  const int64_t last = channels - (V - 1) * lanes;
  vec best[V], at[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    best[v] = load_part(x + v * lanes, v == V - 1 ? last : lanes);
    at[v] = broadcast(static_cast<float>(rows.begin * s.pool_w + cols.begin));
  }
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const float* pixel = x + (i - rows.begin) * s.w * s.c;
    for (int64_t j = cols.begin; j < cols.end; ++j, pixel += s.c) {
      // The first position meets itself, which changes nothing.
      const vec position = broadcast(static_cast<float>(i * s.pool_w + j));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const vec value = load_part(pixel + v * lanes, v == V - 1 ? last : lanes);
        keep_maximum(value, position, best[v], at[v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    store_part(y + v * lanes, best[v], v == V - 1 ? last : lanes);
    if (argmax == nullptr) continue;
    store_bytes_n(argmax + v * lanes, at[v], v == V - 1 ? last : lanes);
  }
}

void forward_pixel(const Pool2dShape& s, const float* image, int64_t top, int64_t left, float* y,
                   uint8_t* argmax) {
  const Clip rows = clip(top, s.pool_h, s.h), cols = clip(left, s.pool_w, s.w);
  const float* const x = image + ((top + rows.begin) * s.w + left + cols.begin) * s.c;
  int64_t c = 0;
  for (; c + 4 * lanes <= s.c; c += 4 * lanes) {
    forward_vectors<4>(s, rows, cols, x + c, 4 * lanes, y + c, behind(argmax, c));
  }
  for (; c < s.c; c += lanes) {
    forward_vectors<1>(s, rows, cols, x + c, min(lanes, s.c - c), y + c, behind(argmax, c));
  }
}

// Positions that a byte cannot hold, nor a float beyond 2^24: channel by channel.
void forward_pixel(const Pool2dShape& s, const float* image, int64_t top, int64_t left, float* y,
                   int32_t* argmax) {
  const Clip rows = clip(top, s.pool_h, s.h), cols = clip(left, s.pool_w, s.w);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    for (int64_t j = cols.begin; j < cols.end; ++j) {
      const float* const x = image + ((top + i) * s.w + left + j) * s.c;
      const bool first = i == rows.begin && j == cols.begin;
      const int32_t position = static_cast<int32_t>(i * s.pool_w + j);
      for (int64_t c = 0; c < s.c; ++c) {
        // Greater, or the first NaN: not (x <= y) is true for both, and for any x once y is NaN,
        // which the second test rules out.
        const bool wins = first | (!(x[c] <= y[c]) & (y[c] == y[c]));
        y[c] = wins ? x[c] : y[c];
        if (argmax != nullptr) argmax[c] = wins ? position : argmax[c];
      }
    }
  }
}

template <class Index>
void forward(const Pool2dShape& s, const float* x, float* y, Index* argmax) {
  parallel_for(num_threads(), s.n * s.oh, [&](int64_t item, int) {
    const int64_t n = item / s.oh, oh = item % s.oh;
    for (int64_t ow = 0; ow < s.ow; ++ow) {
      const int64_t at = (item * s.ow + ow) * s.c;
      forward_pixel(s, x + n * s.h * s.w * s.c, oh * s.stride_h - s.pad_top,
                    ow * s.stride_w - s.pad_left, y + at, behind(argmax, at));
    }
  });
}

// A row of dx, which is row i of a row of windows: dx = dy where the argmax is the pixel's
// position, else 0. The shape is a copy, which the compiler knows that no store changes.
template <bool few>
void take_row(const Pool2dShape s, int64_t i, const float* dy, const uint8_t* argmax, float* dx) {
  int64_t done = 0;  // pixels that are written
  for (int64_t ow = 0; ow < s.ow; ++ow, dy += s.c, argmax += s.c) {
    const int64_t left = ow * s.stride_w - s.pad_left;
    const Clip cols = clip(left, s.pool_w, s.w);
    if (done < left + cols.begin) {
      clear(dx + done * s.c, (left + cols.begin - done) * s.c);
      done = left + cols.begin;
    }
    // Fewer channels than lanes: a whole vector reaches into the next pixels, which are written
    // later, unless they are beyond the row's end.
    const bool fits = !few || s.c * min(s.w - left - cols.end + 1, s.ow - ow) >= lanes;
    float* to = dx + done * s.c;
    for (int64_t j = cols.begin; j < cols.end; ++j, to += s.c) {
      const auto position = static_cast<uint8_t>(i * s.pool_w + j);
      const auto take_vector = [&](int64_t c) __attribute__((always_inline)) {
        store(to + c, where_equal(argmax + c, position, load(dy + c)));
      };
      if (few && fits) {
        take_vector(0);
      } else if (few) {
        for (int64_t c = 0; c < s.c; ++c) to[c] = argmax[c] == position ? dy[c] : 0.0f;
      } else {
        int64_t c = 0;
        for (; c + 4 * lanes <= s.c; c += 4 * lanes) {
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) take_vector(c + v * lanes);
        }
        for (; c + lanes <= s.c; c += lanes) take_vector(c);
        if (c < s.c) take_vector(s.c - lanes);  // some of them once more
      }
    }
    done = left + cols.end;
  }
  clear(dx + done * s.c, (s.w - done) * s.c);
}

// Windows that do not overlap: every element of dx belongs to at most one window and is written
// once. An item owns the input rows from the top of its window to the top of the next.
void backward_by_rows(const Pool2dShape& s, const float* dy, const uint8_t* argmax, float* dx) {
  parallel_for(num_threads(), s.n * s.oh, [&](int64_t item, int) {
    const int64_t n = item / s.oh, oh = item % s.oh;
    const int64_t top = oh * s.stride_h - s.pad_top, window = item * s.ow * s.c;
    const int64_t first = oh == 0 ? 0 : max(0, top);
    const int64_t last = oh == s.oh - 1 ? s.h : min(s.h, top + s.stride_h);
    for (int64_t ih = first; ih < last; ++ih) {
      float* const row = dx + (n * s.h + ih) * s.w * s.c;
      if (ih >= top && ih < top + s.pool_h) {
        if (s.c <= lanes) {
          take_row<true>(s, ih - top, dy + window, argmax + window, row);
        } else {
          take_row<false>(s, ih - top, dy + window, argmax + window, row);
        }
      } else {
        clear(row, s.w * s.c);
      }
    }
  });
}

// dx in these rows of an image, for some channels: every window around them hands out its values
// one by one, in their order. dy, argmax and dx: of the image. The caller's argmax may hold
// anything; what is no position goes nowhere.
template <class Index>
void scatter(const Pool2dShape& s, const Range& rows, const Range& channels,
             const float* __restrict dy, const Index* __restrict argmax, float* __restrict dx) {
  const int64_t line = s.w * s.c;
  // Rows are cleared when a window reaches them, so that they are in the cache for it.
  int64_t cleared = rows.begin;
  const auto clear_until = [&](int64_t end) {
    for (; cleared < end; ++cleared) {
      if (channels.end - channels.begin == s.c) {
        clear(dx + cleared * line, line);
        continue;
      }
      for (int64_t pixel = cleared * s.w; pixel < (cleared + 1) * s.w; ++pixel) {
        clear(dx + pixel * s.c + channels.begin, channels.end - channels.begin);
      }
    }
  };
  // From a window's corner to the positions of a byte, which saves a division.
  constexpr bool looked_up = sizeof(Index) == 1;
  constexpr int64_t none = -1;
  int64_t offsets[looked_up ? max_uint8_window : 1];
  if (looked_up) {
    for (int64_t& offset : offsets) offset = none;
    for (int64_t i = 0; i < s.pool_h; ++i) {
      for (int64_t j = 0; j < s.pool_w; ++j) offsets[i * s.pool_w + j] = i * line + j * s.c;
    }
  }
  const auto pool_w = static_cast<uint32_t>(s.pool_w);
  const int64_t positions = s.pool_h * s.pool_w;
  const int64_t top = rows.begin + s.pad_top, bottom = rows.end - 1 + s.pad_top;
  const int64_t oh_begin = windows_around(top, s.pool_h, s.stride_h, s.oh).begin;
  const int64_t oh_end = windows_around(bottom, s.pool_h, s.stride_h, s.oh).end;
  for (int64_t oh = oh_begin; oh < oh_end; ++oh) {
    clear_until(min(rows.end, oh * s.stride_h - s.pad_top + s.pool_h));
    for (int64_t ow = 0; ow < s.ow; ++ow) {
      const int64_t window = (oh * s.ow + ow) * s.c;
      const int64_t ih = oh * s.stride_h - s.pad_top, iw = ow * s.stride_w - s.pad_left;
      const bool inside =
          ih >= rows.begin && ih + s.pool_h <= rows.end && iw >= 0 && iw + s.pool_w <= s.w;
      if (looked_up && inside) {
        float* const corner = dx + ih * line + iw * s.c;
        for (int64_t c = channels.begin; c < channels.end; ++c) {
          const int64_t offset = offsets[argmax[window + c]];
          if (offset != none) corner[offset + c] += dy[window + c];
        }
        continue;
      }
      for (int64_t c = channels.begin; c < channels.end; ++c) {
        const auto position = static_cast<uint32_t>(argmax[window + c]);
        const int64_t row = ih + position / pool_w, column = iw + position % pool_w;
        const bool in_rows = row >= rows.begin && row < rows.end && column >= 0 && column < s.w;
        if (position >= positions || !in_rows) continue;
        dx[row * line + column * s.c + c] += dy[window + c];
      }
    }
  }
  clear_until(rows.end);
}

// A pixel, from the corner of the padding, and the windows around it.
struct Pixel {
  int64_t h, w;
  Range windows_h, windows_w;
};

// dx = sum of dy over the windows that the pixel won, for V vectors of channels as of for_channels.
// dy and argmax: of its image.
template <int V>
void collect(const Pool2dShape& s, const Pixel& pixel, const float* dy, const uint8_t* argmax,
             float* dx, int64_t last) {
  const auto at = [=](int v) { return vector_begin<V>(v, last); };
  vec sum[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] = zero();
  for (int64_t oh = pixel.windows_h.begin; oh < pixel.windows_h.end; ++oh) {
    for (int64_t ow = pixel.windows_w.begin; ow < pixel.windows_w.end; ++ow) {
      const int64_t i = pixel.h - oh * s.stride_h, j = pixel.w - ow * s.stride_w;
      const auto position = static_cast<uint8_t>(i * s.pool_w + j);
      const float* const from = dy + (oh * s.ow + ow) * s.c;
      const uint8_t* const winner = argmax + (oh * s.ow + ow) * s.c;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        sum[v] = add(sum[v], where_equal(winner + at(v), position, load(from + at(v))));
      }
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store(dx + at(v), sum[v]);
}

// Windows that overlap: every pixel looks through the windows around it, in their order.
void backward_by_pixels(const Pool2dShape& s, const float* dy, const uint8_t* argmax, float* dx) {
  parallel_rows(s.n * s.h, s.c, [&](int64_t first, int64_t last, int64_t c0, int64_t c1) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t n = row / s.h, ih = row % s.h, image = n * s.oh * s.ow * s.c;
      float* const to = dx + n * s.h * s.w * s.c;
      if (c1 - c0 < lanes) {
        scatter(s, {ih, ih + 1}, {c0, c1}, dy + image, argmax + image, to);
        continue;
      }
      Pixel pixel{ih + s.pad_top, s.pad_left, {0, 0}, {0, 0}};
      pixel.windows_h = windows_around(pixel.h, s.pool_h, s.stride_h, s.oh);
      for (int64_t iw = 0; iw < s.w; ++iw, ++pixel.w) {
        // Not by windows_around, whose divisions would show.
        Range& around = pixel.windows_w;
        while (around.end < s.ow && around.end * s.stride_w <= pixel.w) ++around.end;
        while (around.begin * s.stride_w + s.pool_w <= pixel.w) ++around.begin;
        const int64_t at = (ih * s.w + iw) * s.c;
        for_channels(c0, c1, [=, &s, &pixel]<int V>(int64_t c, int64_t last_at, int64_t) {
          collect<V>(s, pixel, dy + image + c, argmax + image + c, to + at + c, last_at);
        });
      }
    }
  });
}

// The same from the windows to the pixels. Where images are too few to go round they are cut into
// bands of rows, whose windows are visited from both sides of a cut, or, if that would be too many
// of them, along the channels.
template <class Index>
void backward_by_values(const Pool2dShape& s, const float* dy, const Index* argmax, float* dx) {
  const int threads = num_threads();
  const int64_t wanted = 2 * threads, most_bands = max(1, s.h / (2 * s.pool_h));
  int64_t bands = min(most_bands, ceil_div(wanted, max(1, s.n)));
  // As many for every thread, if that can be.
  for (int64_t fewer = bands; fewer > 0 && s.n * fewer >= threads; --fewer) {
    if (s.n * fewer % threads == 0) {
      bands = fewer;
      break;
    }
  }
  const auto run = [&](int64_t n, const Range& rows, const Range& channels) {
    const int64_t image = n * s.oh * s.ow * s.c;
    scatter(s, rows, channels, dy + image, argmax + image, dx + n * s.h * s.w * s.c);
  };
  if (s.n * bands >= threads) {
    parallel_for(threads, s.n * bands, [&](int64_t item, int) {
      const int64_t band = item % bands;
      run(item / bands, {part_begin(s.h, bands, band), part_begin(s.h, bands, band + 1)}, {0, s.c});
    });
    return;
  }
  parallel_rows(s.n, s.c, [&](int64_t first, int64_t last, int64_t c0, int64_t c1) {
    for (int64_t n = first; n < last; ++n) run(n, {0, s.h}, {c0, c1});
  });
}

void backward(const Pool2dShape& s, const float* dy, const uint8_t* argmax, float* dx) {
  // What a window costs, in half nanoseconds of a Zen 3 core: its values and clearing its pixels,
  // or comparisons, and finding the windows around pixels where these differ. Values are dearer
  // where they go to pixels that the first-level cache cannot hold and no window has met before.
  constexpr int64_t kept_bytes = 16 * 1024;
  const int64_t vectors = ceil_div(s.c, lanes);
  const int64_t pixels = min(s.stride_h, s.h) * min(s.stride_w, s.w);  // strides may be huge
  const bool disjoint = s.stride_h >= s.pool_h && s.stride_w >= s.pool_w;
  const bool scattered = disjoint && s.pool_h * s.pool_w * s.c * float_bytes > kept_bytes;
  const int64_t by_values = (scattered ? 8 : 4) * s.c + pixels * vectors / 2;
  const int64_t by_positions = s.pool_h * s.pool_w * (3 + vectors) + (disjoint ? 0 : 16 * pixels);
  if (by_values < by_positions) {
    backward_by_values(s, dy, argmax, dx);
  } else if (disjoint) {
    backward_by_rows(s, dy, argmax, dx);
  } else {
    backward_by_pixels(s, dy, argmax, dx);
  }
}
// Larger windows have more positions than are worth comparing.
void backward(const Pool2dShape& s, const float* dy, const int32_t* argmax, float* dx) {
  backward_by_values(s, dy, argmax, dx);
}

bool uint8_argmax(const Pool2dShape& s) { return s.pool_h * s.pool_w <= max_uint8_window; }

}  // namespace

void max_pool2d(const Pool2dShape& s, const float* x, float* y, void* argmax) {
  const OneThread alone(s.n * s.h * s.w * s.c <= few_values);
  if (uint8_argmax(s)) {
    forward(s, x, y, static_cast<uint8_t*>(argmax));
  } else {
    forward(s, x, y, static_cast<int32_t*>(argmax));
  }
}

void max_pool2d_backward(const Pool2dShape& s, const float* dy, const void* argmax, float* dx) {
  const int64_t windows = ceil_div(s.pool_h, s.stride_h) * ceil_div(s.pool_w, s.stride_w);
  const OneThread alone(s.n * s.h * s.w * s.c * windows <= few_values);
  if (uint8_argmax(s)) {
    backward(s, dy, static_cast<const uint8_t*>(argmax), dx);
  } else {
    backward(s, dy, static_cast<const int32_t*>(argmax), dx);
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
