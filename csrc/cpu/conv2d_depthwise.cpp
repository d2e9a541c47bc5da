// Depthwise convolution, as many groups as channels and a filter each: forward and both gradients.
//
// Nothing is summed over channels, so lanes run along them and weights are read where they lie. The
// forward pass and the data gradient are one algorithm, the sum over the taps that reach a
// position: positions of an axis that see the same taps go together (axis_taps.hpp), so the inner
// loop has no conditions at borders, and where a data gradient has strides it multiplies no zeros.
//
// A tile is a few such positions of a row and a vector of channels. Where the taps of a row are
// neighbours, a pixel that is loaded once is multiplied for all positions that it is a tap of: with
// a 3x3 kernel that is three multiply-adds a load. Longer rows of taps go by threes. In the forward
// pass and the data gradient the results of the positions stay in registers over all taps, in the
// weight gradient their gradients do.
//
// Deterministic: every element is summed in one order, which depends on the shape alone.
#include <math.h>

#include "axis_taps.hpp"
#include "conv2d.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// What a tap is to a position: the distance from its first tap's source pixel, and the weights.
struct Tap {
  int64_t x, w;
};

// Positions of a row of results.
struct Positions {
  int64_t source, source_step;  // the pixel of the first tap, from a position to the next
  int64_t result, result_step;  // the pixel of the result, likewise
  const Tap* taps;
  int64_t tap_rows, row_taps;
  bool neighbours;  // the taps of a row
};

// Largest number of taps in a row and steps between positions that have loops of their own; rows
// of more taps have one together.
constexpr int most_taps = 3, more_taps = most_taps + 1, most_steps = 2,
              most_pixels = lanes == 8 ? 4 : 8;
// Of channels: a cache line, where the registers suffice.
constexpr int most_vectors = lanes == 8 ? 2 : 1;

// All of a vector, or its first `count` lanes.
template <bool whole>
vec load_lanes(const float* p, int64_t count) {
  return whole ? load(p) : load_n(p, count);
}
template <bool whole>
void store_lanes(float* p, vec v, int64_t count) {
  if (whole) {
    store(p, v);
  } else {
    store_n(p, v, count);
  }
}

// body<vectors, whole>(begin, end) for the channels [c, end): so many vectors at a time, then one,
// then what is left of one.
template <class Body>
void for_channels(int64_t c, int64_t end, const Body& body) {
  const auto part = [&]<int vectors, bool whole>(int64_t channels) {
    const int64_t last = c + (end - c) / channels * channels;
    if (c < last) body.template operator()<vectors, whole>(c, last);
    c = last;
  };
  part.template operator()<most_vectors, true>(most_vectors * lanes);
  if constexpr (most_vectors > 1) part.template operator()<1, true>(lanes);
  if (c < end) body.template operator()<1, false>(c, end);
}

// The taps of every pair of a row class and a column class, and the class of every row.
class TapTable {
 public:
  // From a source of `source_w` columns to a result of `result_h` x `result_w`. The weights of a
  // tap are `w_step` behind those of the one before it, or, flipped for a data gradient, before
  // them.
  TapTable(const Conv2dShape& s, const AxisTaps& rows, const AxisTaps& cols, int64_t source_w,
           int64_t result_h, int64_t result_w, int64_t w_step, bool flip, Scratch& memory)
      : c_(s.c),
        kernel_w_(s.kw),
        last_tap_(s.kh * s.kw - 1),
        source_w_(source_w),
        result_w_(result_w),
        w_step_(w_step),
        flip_(flip),
        rows_(rows),
        cols_(cols) {
    int64_t taps = 0;
    for (int64_t r = 0; r < rows.class_count; ++r) {
      for (int64_t c = 0; c < cols.class_count; ++c) {
        taps += rows.classes[r].tap_count * cols.classes[c].tap_count;
      }
    }
    taps_at_ = memory.reserve<Tap>(taps);
    begins_at_ = memory.reserve<int64_t>(rows.class_count * cols.class_count);
    places_at_ = memory.reserve<Place>(result_h);
    spacings_at_ = memory.reserve<Spacing>(cols.class_count);
  }

  // Once the memory is allocated.
  void fill(const Scratch& memory) {
    Tap* const taps = memory.at<Tap>(taps_at_);
    int64_t* begin = memory.at<int64_t>(begins_at_);
    Place* const places = memory.at<Place>(places_at_);
    Spacing* const spacings = memory.at<Spacing>(spacings_at_);
    taps_ = taps, begins_ = begin, places_ = places, spacings_ = spacings;
    for (int64_t c = 0; c < cols_.class_count; ++c) spacings[c] = spacing_of(cols_.classes[c]);
    int64_t end = 0;
    for (int64_t r = 0; r < rows_.class_count; ++r) {
      const AxisClass& row = rows_.classes[r];
      for (int64_t i = 0; i < row.position_count; ++i) {
        places[row.positions[i].out] = {r, row.positions[i].origin};
      }
      for (int64_t c = 0; c < cols_.class_count; ++c) {
        const AxisClass& col = cols_.classes[c];
        *begin++ = end;
        for (int64_t i = 0; i < row.tap_count; ++i) {
          for (int64_t j = 0; j < col.tap_count; ++j) {
            const int64_t tap = row.taps[i].k * kernel_w_ + col.taps[j].k;
            taps[end++] = {(row.taps[i].offset * source_w_ + col.taps[j].offset) * c_,
                           (flip_ ? last_tap_ - tap : tap) * w_step_};
          }
        }
      }
    }
  }

  // body(positions, count) for the positions of a row of the result, evenly spaced ones together.
  template <class Body>
  void for_positions(int64_t row, const Body& body) const {
    const Place& place = places_[row];
    for (int64_t c = 0; c < cols_.class_count; ++c) {
      const AxisClass& col = cols_.classes[c];
      const Spacing& spacing = spacings_[c];
      Positions found{};
      found.source_step = spacing.source * c_;
      found.result_step = spacing.result * c_;
      found.taps = taps_ + begins_[place.axis_class * cols_.class_count + c];
      found.tap_rows = rows_.classes[place.axis_class].tap_count;
      found.row_taps = col.tap_count;
      found.neighbours = spacing.neighbours;
      const int64_t count = spacing.even ? col.position_count : 1;
      for (int64_t p = 0; p < col.position_count; p += count) {
        found.source = (place.origin * source_w_ + col.positions[p].origin) * c_;
        found.result = (row * result_w_ + col.positions[p].out) * c_;
        body(found, count);
      }
    }
  }

 private:
  struct Place {
    int64_t axis_class, origin;
  };
  struct Spacing {
    int64_t source, result;  // pixels from a position to the next
    bool even;               // the same for all
    bool neighbours;         // the taps of a row
  };
  static Spacing spacing_of(const AxisClass& col) {
    const AxisPosition* const at = col.positions;
    Spacing found{1, 1, true, true};
    if (col.position_count > 1) {
      found.source = at[1].origin - at[0].origin, found.result = at[1].out - at[0].out;
    }
    for (int64_t i = 2; i < col.position_count; ++i) {
      found.even &= at[i].origin - at[i - 1].origin == found.source &&
                    at[i].out - at[i - 1].out == found.result;
    }
    for (int64_t i = 0; i < col.tap_count; ++i) found.neighbours &= col.taps[i].offset == i;
    return found;
  }

  int64_t c_, kernel_w_, last_tap_, source_w_, result_w_, w_step_;
  bool flip_;
  const AxisTaps& rows_;
  const AxisTaps& cols_;
  int64_t taps_at_, begins_at_, places_at_, spacings_at_;
  const Tap* taps_ = nullptr;
  const int64_t* begins_ = nullptr;
  const Place* places_ = nullptr;
  const Spacing* spacings_ = nullptr;
};

// For a tile of `pixels` positions `step` pixels apart with `taps` neighbouring taps: for the pixel
// `i` of a row, body(position, tap) for those that it is this tap of.
template <int pixels, int taps, int step, class Body>
[[gnu::always_inline]] static inline void for_uses(int i, const Body& body) {
#pragma GCC unroll 3
  for (int tap = 0; tap < taps; ++tap) {
    const int distance = i - tap;
    if (distance >= 0 && distance % step == 0 && distance / step < pixels) {
      body(distance / step, tap);
    }
  }
}
template <int pixels, int taps, int step>
constexpr int pixels_in_row = (pixels - 1) * step + taps;

// body<taps>(first tap) for all taps of a position, row by row: each row at once, or, if it has
// more_taps, so many as there are loops for.
template <int taps, class Body>
[[gnu::always_inline]] static inline void for_rows_of_taps(const Positions& at, const Body& body) {
  const Tap* tap = at.taps;
  for (int64_t row = 0; row < at.tap_rows; ++row) {
    if constexpr (taps <= most_taps) {
      body.template operator()<taps>(tap);
      tap += taps;
    } else {
      const Tap* const end = tap + at.row_taps;
      for (; tap + most_taps <= end; tap += most_taps) body.template operator()<most_taps>(tap);
      if (tap + 2 == end) {
        body.template operator()<2>(tap);
      } else if (tap + 1 == end) {
        body.template operator()<1>(tap);
      }
      tap = end;
    }
  }
}

// ---------------------------------------------------------------------------------------------
// The sum over taps: forward and data gradient

// result[n, i, j, c] = bias[c] + sum over the taps that reach (i, j) of source * weights
struct TapSum {
  const float* source;
  int64_t source_line, source_size;  // floats of a row and of an image
  int64_t new_rows;                  // that the next row of results sees
  bool fetch;
  float* result;
  const float* bias;
  const float* weights;
  vec least;  // of a result
};

// What comes from memory is asked for a row ahead. With many channels it costs more than it gains.
bool worth_fetching(const Conv2dShape& s) { return s.c < 256; }
// Asks for a line of `pixels` pixels, in the rows behind this one.
template <int pixels>
[[gnu::always_inline]] static inline void fetch_next(const float* x, int64_t pixel, int64_t line,
                                                     int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    x += line;
#pragma GCC unroll 16
    for (int i = 0; i < pixels; ++i) __builtin_prefetch(x + i * pixel, 0, 2);
  }
}

// A tile of positions, for the channels [c, end).
template <int pixels, int taps, int step, int vectors, bool whole>
void sum_neighbours(const TapSum& conv, const Positions& at, const float* source, float* result,
                    int64_t pixel, int64_t c, int64_t end) {
  const float* const bias = conv.bias;
  const float* const weights = conv.weights;
  const int64_t result_step = at.result_step;
  const vec least = conv.least;
  const int64_t count = end - c;
  for (; c < end; c += vectors * lanes) {
    vec sums[pixels][vectors];
#pragma GCC unroll 2
    for (int q = 0; q < vectors; ++q) {
      const vec start = bias != nullptr ? load_lanes<whole>(bias + c + q * lanes, count) : zero();
#pragma GCC unroll 8
      for (int p = 0; p < pixels; ++p) sums[p][q] = start;
    }
    for_rows_of_taps<taps>(at, [&]<int some>(const Tap* tap) __attribute__((always_inline)) {
      const float* x = source + tap->x + c;
      vec w[some][vectors];
#pragma GCC unroll 3
      for (int t = 0; t < some; ++t) {
#pragma GCC unroll 2
        for (int q = 0; q < vectors; ++q)
          w[t][q] = load_lanes<whole>(weights + tap[t].w + c + q * lanes, count);
      }
#pragma GCC unroll 17
      for (int i = 0; i < pixels_in_row<pixels, some, step>; ++i, x += pixel) {
#pragma GCC unroll 2
        for (int q = 0; q < vectors; ++q) {
          const vec v = load_lanes<whole>(x + q * lanes, count);
          for_uses<pixels, some, step>(i, [&](int p, int t) __attribute__((always_inline)) {
            sums[p][q] = fmadd(v, w[t][q], sums[p][q]);
          });
        }
      }
    });
    if (conv.fetch && at.tap_rows > 0) {
      const Tap* const last_row = at.taps + (at.tap_rows - 1) * at.row_taps;
      fetch_next<pixels * step>(source + last_row->x + c, pixel, conv.source_line, conv.new_rows);
    }
    float* y = result + c;
#pragma GCC unroll 8
    for (int p = 0; p < pixels; ++p, y += result_step) {
#pragma GCC unroll 2
      for (int q = 0; q < vectors; ++q)
        store_lanes<whole>(y + q * lanes, at_least(least, sums[p][q]), count);
    }
  }
}

// The same for any taps of `pixels` positions.
template <int pixels>
void sum_taps(const TapSum& conv, const Positions& at, const float* source, float* result,
              int64_t c, int64_t end) {
  for (; c < end; c += lanes) {
    const int64_t count = min(lanes, end - c);
    vec sums[pixels];
    const vec start = conv.bias != nullptr ? load_part(conv.bias + c, count) : zero();
#pragma GCC unroll 4
    for (int p = 0; p < pixels; ++p) sums[p] = start;
    for (int64_t t = 0; t < at.tap_rows * at.row_taps; ++t) {
      const float* const x = source + at.taps[t].x + c;
      const vec w = load_part(conv.weights + at.taps[t].w + c, count);
#pragma GCC unroll 4
      for (int p = 0; p < pixels; ++p) {
        sums[p] = fmadd(load_part(x + p * at.source_step, count), w, sums[p]);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < pixels; ++p) {
      store_part(result + p * at.result_step + c, at_least(conv.least, sums[p]), count);
    }
  }
}

// run.template operator()<pixels, taps, step>(first) for tiles of `count` positions.
template <int pixels, int taps, int step, class Run>
void for_tiles(int64_t first, int64_t count, const Run& run) {
  for (; first + pixels <= count; first += pixels)
    run.template operator()<pixels, taps, step>(first);
  if constexpr (pixels > 1) for_tiles<pixels / 2, taps, step>(first, count, run);
}
// The same where there are loops for taps and steps like these; else returns false.
template <int taps, int step, class Run>
bool for_neighbours(const Positions& at, int64_t count, int64_t pixel, const Run& run) {
  if constexpr (taps > 1) {
    if (at.row_taps < taps) return for_neighbours<taps - 1, step>(at, count, pixel, run);
  }
  if constexpr (step > 1) {
    if (at.source_step < step * pixel) return for_neighbours<taps, step - 1>(at, count, pixel, run);
  }
  const bool taps_fit = taps > most_taps ? at.row_taps >= taps : at.row_taps == taps;
  if (!at.neighbours || !taps_fit || at.source_step != step * pixel) return false;
  for_tiles<most_pixels, taps, step>(0, count, run);
  return true;
}

void run(const Conv2dShape& s, const TapSum& conv, const TapTable& table, int64_t result_h,
         int64_t result_w) {
  parallel_rows(s.n * result_h, s.c, [&](int64_t first, int64_t last, int64_t c0, int64_t c1) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t n = row / result_h;
      float* const image = conv.result + n * result_h * result_w * s.c;
      table.for_positions(row % result_h, [&](const Positions& at, int64_t count) {
        const float* const source = conv.source + n * conv.source_size + at.source;
        float* const result = image + at.result;
        const bool done = for_neighbours<more_taps, most_steps>(
            at, count, s.c, [&]<int pixels, int taps, int step>(int64_t p) {
              const float* const from = source + p * at.source_step;
              float* const to = result + p * at.result_step;
              for_channels(c0, c1, [&]<int vectors, bool whole>(int64_t c, int64_t end) {
                sum_neighbours<pixels, taps, step, vectors, whole>(conv, at, from, to, s.c, c, end);
              });
            });
        if (done) return;
        for_tiles<4, 1, 1>(0, count, [&]<int pixels, int, int>(int64_t p) {
          sum_taps<pixels>(conv, at, source + p * at.source_step, result + p * at.result_step, c0,
                           c1);
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
// Weight gradient: sums[tap, c] += dy * x over a tile's positions, and behind the taps' sums that
// of dy

struct WeightSums {
  const float* x;
  const float* dy;
  const float* mask;  // if not null, dy counts where this is positive
  float* sums;
  float* bias;
  int64_t line, new_rows;  // as in TapSum
  bool fetch;
};

template <bool whole>
vec load_gradient(const WeightSums& to, int64_t at, int64_t count) {
  const vec v = load_lanes<whole>(to.dy + at, count);
  return to.mask == nullptr ? v : where_positive(load_lanes<whole>(to.mask + at, count), v);
}

template <int pixels, int taps, int step, int vectors, bool whole>
void add_neighbours(const WeightSums& to, const Positions& at, int64_t x_at, int64_t dy_at,
                    int64_t pixel, int64_t c, int64_t end) {
  const float* const source = to.x + x_at;
  float* const sums = to.sums;
  const int64_t count = end - c;
  for (; c < end; c += vectors * lanes) {
    vec gradients[pixels][vectors];
#pragma GCC unroll 2
    for (int q = 0; q < vectors; ++q) {
      const int64_t at_q = c + q * lanes;
      vec bias = load_lanes<whole>(to.bias + at_q, count);
#pragma GCC unroll 8
      for (int p = 0; p < pixels; ++p) {
        gradients[p][q] = load_gradient<whole>(to, dy_at + p * at.result_step + at_q, count);
        bias = add(bias, gradients[p][q]);
      }
      store_lanes<whole>(to.bias + at_q, bias, count);
    }
    if (to.fetch && at.tap_rows > 0) {
      const Tap* const last_row = at.taps + (at.tap_rows - 1) * at.row_taps;
      fetch_next<pixels * step>(source + last_row->x + c, pixel, to.line, to.new_rows);
    }
    for_rows_of_taps<taps>(at, [&]<int some>(const Tap* tap) __attribute__((always_inline)) {
      const float* x = source + tap->x + c;
      vec sum[some][vectors];
#pragma GCC unroll 3
      for (int t = 0; t < some; ++t) {
#pragma GCC unroll 2
        for (int q = 0; q < vectors; ++q)
          sum[t][q] = load_lanes<whole>(sums + tap[t].w + c + q * lanes, count);
      }
#pragma GCC unroll 17
      for (int i = 0; i < pixels_in_row<pixels, some, step>; ++i, x += pixel) {
#pragma GCC unroll 2
        for (int q = 0; q < vectors; ++q) {
          const vec v = load_lanes<whole>(x + q * lanes, count);
          for_uses<pixels, some, step>(i, [&](int p, int t) __attribute__((always_inline)) {
            sum[t][q] = fmadd(gradients[p][q], v, sum[t][q]);
          });
        }
      }
#pragma GCC unroll 3
      for (int t = 0; t < some; ++t) {
#pragma GCC unroll 2
        for (int q = 0; q < vectors; ++q)
          store_lanes<whole>(sums + tap[t].w + c + q * lanes, sum[t][q], count);
      }
    });
  }
}

void add_taps(const WeightSums& to, const Positions& at, int64_t pixels, int64_t x_at,
              int64_t dy_at, int64_t c, int64_t end) {
  for (; c < end; c += lanes) {
    const int64_t count = min(lanes, end - c);
    for (int64_t p = 0; p < pixels; ++p) {
      const vec gradient = load_gradient<false>(to, dy_at + p * at.result_step + c, count);
      store_part(to.bias + c, add(load_part(to.bias + c, count), gradient), count);
      for (int64_t t = 0; t < at.tap_rows * at.row_taps; ++t) {
        const float* const x = to.x + x_at + p * at.source_step + at.taps[t].x + c;
        float* const sum = to.sums + at.taps[t].w + c;
        store_part(sum, fmadd(gradient, load_part(x, count), load_part(sum, count)), count);
      }
    }
  }
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
  TapTable table(s, rows, cols, s.w, s.oh, s.ow, s.c, false, memory);
  memory.allocate();
  table.fill(memory);
  const TapSum conv{.source = x,
                    .source_line = s.w * s.c,
                    .source_size = s.h * s.w * s.c,
                    .new_rows = min(s.stride_h, s.kh),
                    .fetch = worth_fetching(s),
                    .result = y,
                    .bias = b,
                    .weights = w,
                    .least = broadcast(activation == Activation::relu ? 0.0f : -HUGE_VALF)};
  run(s, conv, table, s.oh, s.ow);
}

void conv2d_depthwise_backward_data(const Conv2dShape& s, Activation activation, const float* dy,
                                    const float* y, const float* w, float* dx) {
  if (s.n == 0) return;
  const bool masked = activation == Activation::relu;
  const int64_t size = s.n * s.oh * s.ow * s.c;
  const AxisTaps rows = AxisTaps::backward_data(row_geometry(s));
  const AxisTaps cols = AxisTaps::backward_data(col_geometry(s));
  Scratch memory;
  TapTable table(s, rows, cols, s.ow, s.h, s.w, s.c, true, memory);
  const int64_t masked_at = memory.reserve<float>(masked ? size : 0);
  memory.allocate();
  table.fill(memory);
  if (masked) {
    float* const to = memory.at<float>(masked_at);
    parallel_ranges(size, 16 * 1024, [&](int64_t begin, int64_t end) {
      masked_copy(dy + begin, y + begin, to + begin, end - begin);
    });
    dy = to;
  }
  const TapSum conv{.source = dy,
                    .source_line = s.ow * s.c,
                    .source_size = s.oh * s.ow * s.c,
                    .new_rows = 1,
                    .fetch = worth_fetching(s),
                    .result = dx,
                    .bias = nullptr,
                    .weights = w,
                    .least = broadcast(-HUGE_VALF)};
  run(s, conv, table, s.h, s.w);
}

void conv2d_depthwise_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                                       const float* y, const float* x, float* dw, float* db) {
  // Rows of the output are dealt out to sums of their own, of which there are as many as feed many
  // threads, if each has pixels enough to be worth adding up. Channels are cut into blocks whose
  // sums, [taps + 1][block], stay in the first-level cache.
  constexpr int64_t wanted_items = 128, least_pixels = 256, block = 64;
  const int64_t taps = s.kh * s.kw, size = (taps + 1) * block, rows = s.n * s.oh;
  const int64_t blocks = ceil_div(s.c, block);
  const int64_t most = max(1, min(rows, rows * s.ow / least_pixels));
  const int64_t splits = min(most, ceil_div(wanted_items, blocks));

  const AxisTaps axis_rows = AxisTaps::forward(row_geometry(s));
  const AxisTaps axis_cols = AxisTaps::forward(col_geometry(s));
  Scratch memory;
  TapTable table(s, axis_rows, axis_cols, s.w, s.oh, s.ow, block, false, memory);
  const int64_t partials_at = memory.reserve<float>(splits * blocks * size);
  memory.allocate();
  table.fill(memory);
  float* const partials = memory.at<float>(partials_at);

  parallel_for(num_threads(), splits * blocks, [&](int64_t item, int) {
    const int64_t split = item / blocks, c0 = item % blocks * block, c1 = min(c0 + block, s.c);
    float* const sums = partials + item * size;
    clear(sums, size);
    const WeightSums to{.x = x,
                        .dy = dy,
                        .mask = activation == Activation::relu ? y : nullptr,
                        .sums = sums - c0,
                        .bias = sums + taps * block - c0,
                        .line = s.w * s.c,
                        .new_rows = min(s.stride_h, s.kh),
                        .fetch = worth_fetching(s)};
    for (int64_t row = part_begin(rows, splits, split); row < part_begin(rows, splits, split + 1);
         ++row) {
      const int64_t n = row / s.oh;
      table.for_positions(row % s.oh, [&](const Positions& at, int64_t count) {
        const int64_t x_at = n * s.h * s.w * s.c + at.source;
        const int64_t dy_at = n * s.oh * s.ow * s.c + at.result;
        const bool done = for_neighbours<more_taps, most_steps>(
            at, count, s.c, [&]<int pixels, int row_taps, int step>(int64_t p) {
              const int64_t x_tile = x_at + p * at.source_step,
                            dy_tile = dy_at + p * at.result_step;
              for_channels(c0, c1, [&]<int vectors, bool whole>(int64_t c, int64_t end) {
                add_neighbours<pixels, row_taps, step, vectors, whole>(to, at, x_tile, dy_tile, s.c,
                                                                       c, end);
              });
            });
        if (!done) add_taps(to, at, count, x_at, dy_at, c0, c1);
      });
    }
  });

  // In the order of the splits.
  parallel_for(num_threads(), blocks, [&](int64_t item, int) {
    const int64_t c0 = item * block, channels = min(block, s.c - c0);
    float* const sums = partials + item * size;
    add_arrays(sums, sums + blocks * size, splits - 1, blocks * size, 0, size);
    for (int64_t tap = 0; tap < taps; ++tap)
      copy(dw + tap * s.c + c0, sums + tap * block, channels);
    if (db != nullptr) copy(db + c0, sums + taps * block, channels);
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
