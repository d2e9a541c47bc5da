// Depthwise convolution, as many groups as channels and a filter each: forward and both gradients.
//
// Nothing is summed over channels, so lanes run along them and weights are read where they lie. The
// forward pass and the data gradient are one algorithm, the sum over the taps that reach a
// position: positions of an axis that see the same taps go together (axis_taps.hpp), so the inner
// loop has no conditions at borders, and where a data gradient has strides it multiplies no zeros.
// A tile is a few such positions, whose results stay in registers over all taps, times two vectors
// of channels. In the weight gradient the gradients of a few positions stay in registers instead.
//
// Deterministic: every element is summed in one order, which depends on the shape alone.
#include <math.h>

#include "axis_taps.hpp"
#include "conv2d.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// What a tap is to a position: the distance from its source pixel to the tap's, and the weights.
struct Tap {
  int64_t x, w;
};

// The taps of every pair of a row class and a column class, and the class of every row.
class TapTable {
 public:
  struct Row {
    int64_t axis_class, origin;
  };

  // The kernel is flipped in a data gradient. `source_w` is the width of the source.
  TapTable(const Conv2dShape& s, const AxisTaps& rows, const AxisTaps& cols, int64_t result_h,
           int64_t source_w, bool flipped, Scratch& memory)
      : s_(s), rows_(rows), cols_(cols), source_w_(source_w), flipped_(flipped) {
    int64_t taps = 0;
    for (int64_t r = 0; r < rows.class_count; ++r) {
      for (int64_t c = 0; c < cols.class_count; ++c) {
        taps += rows.classes[r].tap_count * cols.classes[c].tap_count;
      }
    }
    taps_at_ = memory.reserve<Tap>(taps);
    begins_at_ = memory.reserve<int64_t>(rows.class_count * cols.class_count + 1);
    places_at_ = memory.reserve<Row>(result_h);
  }

  // Once the memory is allocated.
  void fill(const Scratch& memory) {
    taps_ = memory.at<Tap>(taps_at_);
    begins_ = memory.at<int64_t>(begins_at_);
    places_ = memory.at<Row>(places_at_);
    int64_t end = 0, pair = 0;
    for (int64_t r = 0; r < rows_.class_count; ++r) {
      const AxisClass& row = rows_.classes[r];
      for (int64_t i = 0; i < row.position_count; ++i) {
        places_[row.positions[i].out] = {r, row.positions[i].origin};
      }
      for (int64_t c = 0; c < cols_.class_count; ++c) {
        const AxisClass& col = cols_.classes[c];
        begins_[pair++] = end;
        for (int64_t i = 0; i < row.tap_count; ++i) {
          for (int64_t j = 0; j < col.tap_count; ++j) {
            const int64_t tap = row.taps[i].k * s_.kw + col.taps[j].k;
            taps_[end++] = {(row.taps[i].offset * source_w_ + col.taps[j].offset) * s_.c,
                            (flipped_ ? s_.kh * s_.kw - 1 - tap : tap) * s_.c};
          }
        }
      }
    }
    begins_[pair] = end;
  }

  // body(positions, count, taps, tap_count, origin) for the positions of a row of the result, at
  // most `most` at a time. `origin` is the place of the row's first tap in an image of the source.
  template <class Body>
  void for_positions(int64_t row, int64_t most, const Body& body) const {
    const Row& place = places_[row];
    for (int64_t c = 0; c < cols_.class_count; ++c) {
      const AxisClass& col = cols_.classes[c];
      const int64_t pair = place.axis_class * cols_.class_count + c;
      for (int64_t p = 0; p < col.position_count; p += most) {
        body(col.positions + p, min(most, col.position_count - p), taps_ + begins_[pair],
             begins_[pair + 1] - begins_[pair], place.origin * source_w_);
      }
    }
  }

 private:
  const Conv2dShape& s_;
  const AxisTaps& rows_;
  const AxisTaps& cols_;
  int64_t source_w_;
  bool flipped_;
  int64_t taps_at_, begins_at_, places_at_;
  Tap* taps_ = nullptr;
  int64_t* begins_ = nullptr;
  Row* places_ = nullptr;
};

// All of a vector, or its first `count` lanes.
template <bool whole>
vec load_channels(const float* p, int64_t count) {
  return whole ? load(p) : load_n(p, count);
}
template <bool whole>
void store_channels(float* p, vec v, int64_t count) {
  if (whole) {
    store(p, v);
  } else {
    store_n(p, v, count);
  }
}
// The same of a source that counts where its mask is positive, if it has one.
template <bool masked, bool whole>
vec load_masked(const float* source, const float* mask, int64_t at, int64_t count) {
  const vec v = load_channels<whole>(source + at, count);
  return masked ? where_positive(load_channels<whole>(mask + at, count), v) : v;
}

// body<pixels>() for a constant equal to `pixels`, from 1 to `most`.
template <int most, class Body>
void with_constant(int64_t pixels, const Body& body) {
  if constexpr (most > 1) {
    if (pixels < most) {
      with_constant<most - 1>(pixels, body);
      return;
    }
  }
  body.template operator()<most>();
}

// ---------------------------------------------------------------------------------------------
// The sum over taps: forward and data gradient

constexpr int tile_pixels = 4, tile_vectors = 2;

// result[n, i, j, c] = bias[c] + sum over taps that reach (i, j) of source[...] * weights[tap, c]
struct TapSum {
  const float* source;
  const float* mask;    // if not null, the source counts where this is positive
  int64_t source_size;  // of an image
  float* result;
  int64_t result_h, result_w;
  const float* bias;
  vec least;  // of a result
  const float* weights;
};

struct Tile {
  int64_t x[tile_pixels], y[tile_pixels];  // where the first tap and the result are
  const Tap* taps;
  int64_t tap_count;
};

template <bool masked, int pixels, int vectors, bool whole>
void run_tile(const TapSum& conv, const Tile& tile, int64_t c, int64_t count) {
  vec sums[pixels][vectors];
  for (int q = 0; q < vectors; ++q) {
    const float* const bias = conv.bias + c + q * lanes;
    const vec start = conv.bias != nullptr ? load_channels<whole>(bias, count) : zero();
    for (int p = 0; p < pixels; ++p) sums[p][q] = start;
  }
  const float* x[pixels];
  const float* mask[pixels];
  for (int p = 0; p < pixels; ++p) {
    x[p] = conv.source + tile.x[p] + c;
    mask[p] = masked ? conv.mask + tile.x[p] + c : nullptr;
  }
  const float* const weights = conv.weights + c;
  for (const Tap* tap = tile.taps; tap < tile.taps + tile.tap_count; ++tap) {
    for (int q = 0; q < vectors; ++q) {
      const vec w = load_channels<whole>(weights + tap->w + q * lanes, count);
      for (int p = 0; p < pixels; ++p) {
        const vec v = load_masked<masked, whole>(x[p], mask[p], tap->x + q * lanes, count);
        sums[p][q] = fmadd(v, w, sums[p][q]);
      }
    }
  }
  for (int p = 0; p < pixels; ++p) {
    for (int q = 0; q < vectors; ++q) {
      store_channels<whole>(conv.result + tile.y[p] + c + q * lanes,
                            at_least(conv.least, sums[p][q]), count);
    }
  }
}

template <bool masked>
void run(const Conv2dShape& s, const TapSum& conv, const TapTable& table) {
  parallel_rows(s.n * conv.result_h, s.c, [&](int64_t first, int64_t last, int64_t c0, int64_t c1) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t image = row / conv.result_h * conv.source_size;
      table.for_positions(row % conv.result_h, tile_pixels,
                          [&](const AxisPosition* positions, int64_t pixels, const Tap* taps,
                              int64_t tap_count, int64_t origin) {
                            Tile tile;
                            tile.taps = taps;
                            tile.tap_count = tap_count;
                            for (int64_t p = 0; p < pixels; ++p) {
                              tile.x[p] = image + (origin + positions[p].origin) * s.c;
                              tile.y[p] = (row * conv.result_w + positions[p].out) * s.c;
                            }
                            with_constant<tile_pixels>(pixels, [&]<int count>() {
                              int64_t c = c0;
                              for (; c + tile_vectors * lanes <= c1; c += tile_vectors * lanes) {
                                run_tile<masked, count, tile_vectors, true>(conv, tile, c, lanes);
                              }
                              for (; c + lanes <= c1; c += lanes) {
                                run_tile<masked, count, 1, true>(conv, tile, c, lanes);
                              }
                              if (c < c1) run_tile<masked, count, 1, false>(conv, tile, c, c1 - c);
                            });
                          });
    }
  });
}

AxisGeometry row_geometry(const Conv2dShape& s) {
  return {s.h, s.oh, s.kh, s.stride_h, s.pad_top, s.dilation_h};
}
AxisGeometry col_geometry(const Conv2dShape& s) {
  return {s.w, s.ow, s.kw, s.stride_w, s.pad_left, s.dilation_w};
}

// ---------------------------------------------------------------------------------------------
// Weight gradient

constexpr int gradient_pixels = 8;
constexpr int64_t gradient_channels = 64;  // whose sums stay in the first-level cache

// sums[tap, c] += sum over the tile's pixels of dy * x, sums[taps, c] += sum of dy
struct GradientTile {
  int64_t x[gradient_pixels], y[gradient_pixels];
  const Tap* taps;
  int64_t tap_count;
};

template <bool masked, int pixels, bool whole>
void add_gradients(const float* dy, const float* mask, const float* x, const GradientTile& tile,
                   int64_t c, int64_t count, float* sums, float* bias) {
  vec gradient[pixels];
  const float* from[pixels];
  vec sum = load_channels<whole>(bias + c, count);
  for (int p = 0; p < pixels; ++p) {
    gradient[p] = load_masked<masked, whole>(dy, mask, tile.y[p] + c, count);
    from[p] = x + tile.x[p] + c;
    sum = add(sum, gradient[p]);
  }
  store_channels<whole>(bias + c, sum, count);
  for (const Tap* tap = tile.taps; tap < tile.taps + tile.tap_count; ++tap) {
    float* const to = sums + tap->w + c;
    sum = load_channels<whole>(to, count);
    for (int p = 0; p < pixels; ++p) {
      sum = fmadd(gradient[p], load_channels<whole>(from[p] + tap->x, count), sum);
    }
    store_channels<whole>(to, sum, count);
  }
}

template <bool masked>
void run_weights(const Conv2dShape& s, const float* dy, const float* y, const float* x, float* dw,
                 float* db) {
  // Rows of the output are dealt out to sums of their own, of which there are as many as feed many
  // threads, if each has pixels enough to be worth adding up.
  constexpr int64_t wanted_items = 128, least_pixels = 256;
  const int64_t blocks = ceil_div(s.c, gradient_channels), rows = s.n * s.oh;
  const int64_t most = min(rows, max(1, rows * s.ow / least_pixels));
  const int64_t splits = min(most, ceil_div(wanted_items, blocks));
  const int64_t weights = s.kh * s.kw * s.c, size = weights + s.c;

  const AxisTaps axis_rows = AxisTaps::forward(row_geometry(s));
  const AxisTaps axis_cols = AxisTaps::forward(col_geometry(s));
  Scratch memory;
  TapTable table(s, axis_rows, axis_cols, s.oh, s.w, false, memory);
  const int64_t partials_at = memory.reserve<float>(splits * size);
  memory.allocate();
  table.fill(memory);
  float* const partials = memory.at<float>(partials_at);

  parallel_for(num_threads(), splits * blocks, [&](int64_t item, int) {
    const int64_t split = item / blocks, c0 = item % blocks * gradient_channels;
    const int64_t c1 = min(c0 + gradient_channels, s.c);
    float* const sums = partials + split * size;
    for (int64_t tap = 0; tap <= s.kh * s.kw; ++tap) clear(sums + tap * s.c + c0, c1 - c0);
    for (int64_t row = part_begin(rows, splits, split); row < part_begin(rows, splits, split + 1);
         ++row) {
      const int64_t image = row / s.oh * s.h * s.w * s.c;
      table.for_positions(
          row % s.oh, gradient_pixels,
          [&](const AxisPosition* positions, int64_t pixels, const Tap* taps, int64_t tap_count,
              int64_t origin) {
            GradientTile tile;
            tile.taps = taps;
            tile.tap_count = tap_count;
            for (int64_t p = 0; p < pixels; ++p) {
              tile.x[p] = image + (origin + positions[p].origin) * s.c;
              tile.y[p] = (row * s.ow + positions[p].out) * s.c;
            }
            with_constant<gradient_pixels>(pixels, [&]<int count>() {
              int64_t c = c0;
              for (; c + lanes <= c1; c += lanes) {
                add_gradients<masked, count, true>(dy, y, x, tile, c, lanes, sums, sums + weights);
              }
              if (c == c1) return;
              add_gradients<masked, count, false>(dy, y, x, tile, c, c1 - c, sums, sums + weights);
            });
          });
    }
  });

  // In the order of the splits.
  parallel_ranges(size, 1024, [&](int64_t begin, int64_t end) {
    add_arrays(partials, partials + size, splits - 1, size, begin, end);
  });
  copy(dw, partials, weights);
  if (db != nullptr) copy(db, partials + weights, s.c);
}

}  // namespace

bool depthwise_fits(const Conv2dShape& s) {
  return s.groups > 1 && s.groups == s.c && s.groups == s.oc;
}

void conv2d_depthwise(const Conv2dShape& s, Activation activation, const float* x, const float* w,
                      const float* b, float* y) {
  if (s.n == 0) return;
  const AxisTaps rows = AxisTaps::forward(row_geometry(s));
  const AxisTaps cols = AxisTaps::forward(col_geometry(s));
  Scratch memory;
  TapTable table(s, rows, cols, s.oh, s.w, false, memory);
  memory.allocate();
  table.fill(memory);
  run<false>(s,
             {.source = x,
              .mask = nullptr,
              .source_size = s.h * s.w * s.c,
              .result = y,
              .result_h = s.oh,
              .result_w = s.ow,
              .bias = b,
              .least = broadcast(activation == Activation::relu ? 0.0f : -HUGE_VALF),
              .weights = w},
             table);
}

void conv2d_depthwise_backward_data(const Conv2dShape& s, Activation activation, const float* dy,
                                    const float* y, const float* w, float* dx) {
  if (s.n == 0) return;
  const AxisTaps rows = AxisTaps::backward_data(row_geometry(s));
  const AxisTaps cols = AxisTaps::backward_data(col_geometry(s));
  Scratch memory;
  TapTable table(s, rows, cols, s.h, s.ow, true, memory);
  memory.allocate();
  table.fill(memory);
  const bool relu = activation == Activation::relu;
  const TapSum conv{.source = dy,
                    .mask = relu ? y : nullptr,
                    .source_size = s.oh * s.ow * s.c,
                    .result = dx,
                    .result_h = s.h,
                    .result_w = s.w,
                    .bias = nullptr,
                    .least = broadcast(-HUGE_VALF),
                    .weights = w};
  if (relu) {
    run<true>(s, conv, table);
  } else {
    run<false>(s, conv, table);
  }
}

void conv2d_depthwise_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                                       const float* y, const float* x, float* dw, float* db) {
  if (s.n == 0) {
    clear(dw, s.kh * s.kw * s.c);
    if (db != nullptr) clear(db, s.c);
    return;
  }
  if (activation == Activation::relu) {
    run_weights<true>(s, dy, y, x, dw, db);
  } else {
    run_weights<false>(s, dy, nullptr, x, dw, db);
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
