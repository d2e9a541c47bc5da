// Direct convolution, forward and backward, for any kernel size, stride, padding, dilation, groups.
//
// All three passes multiply every tap with every channel, and nothing is unrolled into a matrix.
// The forward pass and the data gradient are one algorithm, the sum over taps, with the axes' taps
// taken forwards or backwards (axis_taps.hpp) and the weights packed as they are or transposed. The
// weight gradient is a sum over pixels. Their inner loops are in tiles.hpp.
//
// Deterministic: every output element is summed in one fixed order; the weight gradient is summed
// over chunks of the batch whose number depends on the shape only.
#include <math.h>

#include "axis_taps.hpp"
#include "conv2d.hpp"
#include "tiles.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// Bytes of activations that one work item should touch, to stay in a core's second-level cache.
constexpr int64_t item_bytes = 320 * 1024;

// dst = src where y > 0, else 0.
void masked_copy(const float* src, const float* y, float* dst, int64_t size) {
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) store(dst + i, where_positive(load(y + i), load(src + i)));
  for (; i < size; ++i) dst[i] = y[i] > 0.0f ? src[i] : 0.0f;
}

// ---------------------------------------------------------------------------------------------
// The sum over taps: forward and data gradient

// result[n, i, j, f] = bias[f] + sum over taps (r, s) that reach (i, j) and over channels k of
//                      source[n, i', j', k] * weights[(r, s), k, f]
struct TapConvolution {
  const AxisTaps& rows;
  const AxisTaps& cols;
  int64_t kernel_h, kernel_w;
  int64_t n, groups;
  const float* source;
  const float* source_mask;           // if not null, source counts where this is positive
  int64_t source_h, source_w, depth;  // depth, features: channels in a group
  float* result;
  int64_t result_h, result_w, features;
  const float* bias;
  bool relu;
  // Where the weights have element (tap, k, f) of group g.
  const float* weights;
  int64_t weight_tap, weight_k, weight_f, weight_group;
};

// Copies one panel of the weights to [tap][k][lanes of the panel], filled up with zeros.
void pack_panel(const TapConvolution& conv, int64_t group, int64_t panel, float* packed) {
  const int64_t width = panel_vectors(conv.features, panel) * lanes;
  const int64_t first = panel * panel_lanes;
  const int64_t features = min(conv.features - first, width);
  const float* weights = conv.weights + group * conv.weight_group + first * conv.weight_f;
  for (int64_t tap = 0; tap < conv.kernel_h * conv.kernel_w; ++tap) {
    const float* from = weights + tap * conv.weight_tap;
    float* to = packed + tap * conv.depth * width;
    if (conv.weight_f == 1) {
      for (int64_t k = 0; k < conv.depth; ++k, to += width, from += conv.weight_k) {
        for (int64_t f = 0; f < features; ++f) to[f] = from[f];
        for (int64_t f = features; f < width; ++f) to[f] = 0.0f;
      }
    } else {  // transposed: read along k, which is what lies contiguous
      for (int64_t f = 0; f < features; ++f) {
        for (int64_t k = 0; k < conv.depth; ++k) {
          to[k * width + f] = from[f * conv.weight_f + k * conv.weight_k];
        }
      }
      for (int64_t f = features; f < width; ++f) {
        for (int64_t k = 0; k < conv.depth; ++k) to[k * width + f] = 0.0f;
      }
    }
  }
}

// The positions of an axis class that lie in rows [begin, end) of the result.
struct PositionRange {
  const AxisPosition* first;
  int64_t count;
};
int64_t first_from(const AxisClass& axis, int64_t row) {
  int64_t begin = 0, end = axis.position_count;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (axis.positions[middle].out < row) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}
PositionRange positions_between(const AxisClass& axis, int64_t begin, int64_t end) {
  const int64_t first = first_from(axis, begin);
  return {axis.positions + first, first_from(axis, end) - first};
}

// How the work is cut: an item is some images, some rows of the result, some panels. Any cut gives
// the same bits, so it may depend on the number of threads.
struct Cut {
  int64_t images, image_parts, row_parts, panel_parts;
};
Cut cut_work(const TapConvolution& conv, int64_t panels, int threads) {
  const int64_t image_bytes =
      static_cast<int64_t>(sizeof(float)) * conv.groups *
      (conv.source_h * conv.source_w * conv.depth + conv.result_h * conv.result_w * conv.features);
  const int64_t wanted = items_per_thread * threads;
  Cut cut{};
  // Small images go several to an item, so that borders of one pixel still fill a tile.
  cut.images = max(1, min(2 * max_tile_rows, item_bytes / max(image_bytes, 1)));
  cut.images = max(1, min(cut.images, conv.n / wanted));
  cut.image_parts = ceil_div(conv.n, cut.images);
  cut.row_parts = min(conv.result_h, ceil_div(wanted, max(cut.image_parts, 1)));
  cut.panel_parts = min(panels, ceil_div(wanted, max(cut.image_parts * cut.row_parts, 1)));
  if (conv.source_mask != nullptr) cut.panel_parts = 1;  // each would mask the source again
  return cut;
}

void run(const TapConvolution& conv) {
  const int64_t taps = conv.kernel_h * conv.kernel_w;
  const int64_t source_c = conv.groups * conv.depth, result_c = conv.groups * conv.features;
  const int64_t source_row = conv.source_w * source_c, source_image = conv.source_h * source_row;
  const int64_t result_row = conv.result_w * result_c, result_image = conv.result_h * result_row;
  const int64_t group_panels = panel_count(conv.features);
  const int64_t panels = conv.groups * group_panels;
  const int64_t group_weights = taps * conv.depth * padded_features(conv.features);
  const int threads = num_threads();
  const Cut cut = cut_work(conv, panels, threads);

  // The taps of each pair of a row class and a column class, one pair after the other.
  const int64_t pairs = conv.rows.class_count * conv.cols.class_count;
  int64_t most_taps = 0;
  for (int64_t r = 0; r < conv.rows.class_count; ++r) {
    for (int64_t c = 0; c < conv.cols.class_count; ++c) {
      most_taps += conv.rows.classes[r].tap_count * conv.cols.classes[c].tap_count;
    }
  }

  Scratch memory;
  const int64_t packed_at = memory.reserve<float>(conv.groups * group_weights);
  const int64_t taps_at = memory.reserve<Tap>(most_taps);
  const int64_t tap_counts_at = memory.reserve<int64_t>(pairs);
  const int64_t masked_size = conv.source_mask != nullptr ? cut.images * source_image : 0;
  const int64_t masked_at = memory.reserve<float>(threads * masked_size);
  memory.allocate();

  float* packed = memory.at<float>(packed_at);
  const auto panel_weights = [&](int64_t panel) {
    return packed + panel / group_panels * group_weights +
           panel % group_panels * panel_lanes * taps * conv.depth;
  };
  parallel_for(threads, panels, [&](int64_t panel, int) {
    pack_panel(conv, panel / group_panels, panel % group_panels, panel_weights(panel));
  });

  Tap* const all_taps = memory.at<Tap>(taps_at);
  int64_t* const tap_counts = memory.at<int64_t>(tap_counts_at);
  Tap* end = all_taps;
  for (int64_t r = 0; r < conv.rows.class_count; ++r) {
    for (int64_t c = 0; c < conv.cols.class_count; ++c) {
      const AxisClass& row = conv.rows.classes[r];
      const AxisClass& col = conv.cols.classes[c];
      Tap* const begin = end;
      for (int64_t i = 0; i < row.tap_count; ++i) {
        for (int64_t j = 0; j < col.tap_count; ++j) {
          const Tap tap{row.taps[i].offset * source_row + col.taps[j].offset * source_c,
                        (row.taps[i].k * conv.kernel_w + col.taps[j].k) * conv.depth, conv.depth};
          // Neighbouring taps of a row join up, where a pixel's channels are all in the group.
          if (end > begin && end[-1].x + end[-1].depth == tap.x &&
              end[-1].w + end[-1].depth == tap.w) {
            end[-1].depth += tap.depth;
          } else {
            *end++ = tap;
          }
        }
      }
      tap_counts[r * conv.cols.class_count + c] = end - begin;
    }
  }

  const int64_t items = cut.image_parts * cut.row_parts * cut.panel_parts;
  parallel_for(threads, items, [&](int64_t item, int worker) {
    const int64_t panel_part = item % cut.panel_parts;
    const int64_t row_part = item / cut.panel_parts % cut.row_parts;
    const int64_t image_part = item / cut.panel_parts / cut.row_parts;
    const int64_t row_begin = part_begin(conv.result_h, cut.row_parts, row_part);
    const int64_t row_end = part_begin(conv.result_h, cut.row_parts, row_part + 1);
    const int64_t image_begin = image_part * cut.images;
    const int64_t images = min(cut.images, conv.n - image_begin);

    const float* source = conv.source + image_begin * source_image;
    float* const result = conv.result + image_begin * result_image;
    if (conv.source_mask != nullptr) {
      float* masked = memory.at<float>(masked_at) + worker * masked_size;
      // Only the rows that these results read.
      int64_t first = conv.source_h, last = -1;
      for (int64_t r = 0; r < conv.rows.class_count; ++r) {
        const AxisClass& row = conv.rows.classes[r];
        const PositionRange range = positions_between(row, row_begin, row_end);
        if (range.count == 0 || row.tap_count == 0) continue;
        first = min(first, range.first[0].origin + row.taps[0].offset);
        last = max(last, range.first[range.count - 1].origin + row.taps[row.tap_count - 1].offset);
      }
      for (int64_t image = 0; image < images && first <= last; ++image) {
        const int64_t at = image * source_image + first * source_row;
        masked_copy(source + at, conv.source_mask + image_begin * source_image + at, masked + at,
                    (last - first + 1) * source_row);
      }
      source = masked;
    }

    ForwardTile tile{};
    tile.least = conv.relu ? 0.0f : -HUGE_VALF;
    const int64_t panel_end = part_begin(panels, cut.panel_parts, panel_part + 1);
    for (int64_t p = part_begin(panels, cut.panel_parts, panel_part); p < panel_end; ++p) {
      const int64_t group = p / group_panels, first = p % group_panels * panel_lanes;
      const int64_t vectors = panel_vectors(conv.features, p % group_panels);
      tile.w = panel_weights(p);
      tile.features = conv.features - first;
      tile.bias = conv.bias != nullptr ? conv.bias + group * conv.features + first : nullptr;
      const float* const x = source + group * conv.depth;
      float* const y = result + group * conv.features + first;
      tile.taps = all_taps;
      for (int64_t r = 0; r < conv.rows.class_count; ++r) {
        const PositionRange row = positions_between(conv.rows.classes[r], row_begin, row_end);
        for (int64_t c = 0; c < conv.cols.class_count; ++c) {
          const AxisClass& col = conv.cols.classes[c];
          tile.tap_count = tap_counts[r * conv.cols.class_count + c];
          // Tiles run over the columns, then the rows, then the images of the class.
          const int64_t positions = images * row.count * col.position_count;
          const int64_t tiles = ceil_div(positions, tile_rows[vectors]);
          int64_t i = 0, j = 0, x_row = 0, y_row = 0;
          int64_t x_image = 0, y_image = 0;
          if (positions > 0) {
            x_row = row.first[0].origin * source_row;
            y_row = row.first[0].out * result_row;
          }
          Parts parts(positions, tiles);
          for (int64_t t = 0; t < tiles; ++t) {
            const int64_t count = parts.next();
            for (int64_t k = 0; k < count; ++k) {
              tile.x[k] = x + x_image + x_row + col.positions[j].origin * source_c;
              tile.y[k] = y + y_image + y_row + col.positions[j].out * result_c;
              if (++j == col.position_count) {
                j = 0;
                if (++i == row.count) {
                  i = 0;
                  x_image += source_image;
                  y_image += result_image;
                }
                x_row = row.first[i].origin * source_row;
                y_row = row.first[i].out * result_row;
              }
            }
            run_tile(tile, vectors, count);
          }
          tile.taps += tile.tap_count;
        }
      }
    }
  });
}

AxisGeometry row_geometry(const Conv2dShape& s) {
  return {s.h, s.oh, s.kh, s.stride_h, s.pad_top, s.dilation_h};
}
AxisGeometry col_geometry(const Conv2dShape& s) {
  return {s.w, s.ow, s.kw, s.stride_w, s.pad_left, s.dilation_w};
}

}  // namespace

void conv2d_direct(const Conv2dShape& s, Activation activation, const float* x, const float* w,
                   const float* b, float* y) {
  if (s.n == 0) return;
  const AxisTaps rows = AxisTaps::forward(row_geometry(s));
  const AxisTaps cols = AxisTaps::forward(col_geometry(s));
  const int64_t c = s.c / s.groups, oc = s.oc / s.groups;
  run({.rows = rows,
       .cols = cols,
       .kernel_h = s.kh,
       .kernel_w = s.kw,
       .n = s.n,
       .groups = s.groups,
       .source = x,
       .source_mask = nullptr,
       .source_h = s.h,
       .source_w = s.w,
       .depth = c,
       .result = y,
       .result_h = s.oh,
       .result_w = s.ow,
       .features = oc,
       .bias = b,
       .relu = activation == Activation::relu,
       .weights = w,
       .weight_tap = c * s.oc,
       .weight_k = s.oc,
       .weight_f = 1,
       .weight_group = oc});
}

void conv2d_direct_backward_data(const Conv2dShape& s, Activation activation, const float* dy,
                                 const float* y, const float* w, float* dx) {
  if (s.n == 0) return;
  const AxisTaps rows = AxisTaps::backward_data(row_geometry(s));
  const AxisTaps cols = AxisTaps::backward_data(col_geometry(s));
  const int64_t c = s.c / s.groups, oc = s.oc / s.groups;
  run({.rows = rows,
       .cols = cols,
       .kernel_h = s.kh,
       .kernel_w = s.kw,
       .n = s.n,
       .groups = s.groups,
       .source = dy,
       .source_mask = activation == Activation::relu ? y : nullptr,
       .source_h = s.oh,
       .source_w = s.ow,
       .depth = oc,
       .result = dx,
       .result_h = s.h,
       .result_w = s.w,
       .features = c,
       .bias = nullptr,
       .relu = false,
       // The kernel flipped: its last tap first.
       .weights = w + (s.kh * s.kw - 1) * c * s.oc,
       .weight_tap = -c * s.oc,
       .weight_k = 1,
       .weight_f = s.oc,
       .weight_group = oc});
}

// ---------------------------------------------------------------------------------------------
// The sum over pixels: weight gradient

namespace {

// Pixels of dy that are summed before moving on to the next tile: their panel of dy (64 bytes a
// pixel) and the cache lines of x that a tile touches (as many) share the first-level cache.
constexpr int64_t block_pixels = 256;
// The partial sums of all chunks together, so that writing and adding them stays cheap.
constexpr int64_t partial_bytes = 8 << 20;
constexpr int64_t max_chunks = 32;

// The weights of a group as a matrix [rows][features], rows being (kh, kw, ic).
struct WeightsCut {
  int64_t rows, features;
  int64_t group_panels, panels;
  int64_t chunks;   // of the batch, by the shape alone: each has its own partial sums
  int64_t partial;  // floats in one chunk's partial sums
  int64_t bias_partial;

  int64_t panel_at(int64_t panel) const {
    return panel / group_panels * rows * padded_features(features) +
           panel % group_panels * panel_lanes * rows;
  }
  int64_t vectors(int64_t panel) const { return panel_vectors(features, panel % group_panels); }
  int64_t row_tiles(int64_t panel) const { return ceil_div(rows, tile_rows[vectors(panel)]); }
};

WeightsCut cut_weights(const Conv2dShape& s) {
  WeightsCut cut{};
  cut.rows = s.kh * s.kw * (s.c / s.groups);
  cut.features = s.oc / s.groups;
  cut.group_panels = panel_count(cut.features);
  cut.panels = s.groups * cut.group_panels;
  cut.partial = s.groups * cut.rows * padded_features(cut.features);
  cut.bias_partial = s.groups * padded_features(cut.features);
  const int64_t bytes = static_cast<int64_t>(sizeof(float)) * cut.partial;
  cut.chunks = max(1, min(min(s.n, max_chunks), partial_bytes / bytes));
  return cut;
}

// How a block of x is copied along one axis: either the stretch that its outputs' taps span, shared
// between the taps, or for every tap the elements that it meets, one tap after the other. The
// second is smaller where strides or dilation leave gaps; so the copy is never larger than taps *
// outputs.
struct CopiedAxis {
  bool shared;
  int64_t count;        // elements in the copy
  int64_t tap, output;  // steps in the copy from tap to tap and from output to output
  int64_t outputs, stride, dilation, pad;

  CopiedAxis(int64_t kernel, int64_t outputs_, int64_t stride_, int64_t dilation_, int64_t pad_)
      : outputs(outputs_), stride(stride_), dilation(dilation_), pad(pad_) {
    const int64_t span = (outputs - 1) * stride + (kernel - 1) * dilation + 1;
    shared = span <= kernel * outputs;
    count = shared ? span : kernel * outputs;
    tap = shared ? dilation : outputs;
    output = shared ? stride : 1;
  }
  // Index in x of element i, when the block begins at output `first`; may lie in the padding.
  int64_t source(int64_t i, int64_t first) const {
    const int64_t begin = first * stride - pad;
    return shared ? begin + i : begin + i % outputs * stride + i / outputs * dilation;
  }
};

// Channels are copied in blocks, [block][row][column][channels of a block]: what a tile walks
// through then lies close together, whatever the number of channels. (In NHWC, pixels of 64
// channels are 256 bytes apart and share a quarter of the first-level cache's sets.)
constexpr int64_t copied_channels = max(8, lanes);

struct CopiedBlock {
  CopiedAxis rows, cols;
  int64_t channels, blocks;  // in a block; number of blocks

  int64_t row_size() const { return cols.count * channels; }
  int64_t block_size() const { return rows.count * row_size(); }
  int64_t size() const { return blocks * block_size(); }
};

// Copies what output rows from `first` on meet, pixel by pixel: x is read in the order in which it
// lies in memory. Channels past the last one are left as they are; no row of the weights reads
// them.
void copy_block(const CopiedBlock& copy, const Conv2dShape& s, const float* image, int64_t first,
                float* to) {
  const int64_t whole = s.c / copied_channels * copied_channels;
  const int64_t block_size = copy.block_size();
  for (int64_t i = 0; i < copy.rows.count; ++i) {
    const int64_t ih = copy.rows.source(i, first);
    const float* row = ih < 0 || ih >= s.h ? nullptr : image + ih * s.w * s.c;
    for (int64_t j = 0; j < copy.cols.count; ++j, to += copy.channels) {
      const int64_t iw = copy.cols.source(j, 0);
      const bool inside = row != nullptr && iw >= 0 && iw < s.w;
      const float* from = inside ? row + iw * s.c : nullptr;
      float* block = to;
      for (int64_t c = 0; c < whole; c += copied_channels, block += block_size) {
        for (int64_t k = 0; k < copied_channels; k += lanes) {
          store(block + k, inside ? load(from + c + k) : zero());
        }
      }
      for (int64_t c = whole; c < s.c; ++c) block[c - whole] = inside ? from[c] : 0.0f;
    }
  }
}

// Copies one panel of dy, [pixels][stride] in memory, to [pixels][Q * lanes], with ReLU's mask
// where there is one, and adds it to bias [Q * lanes].
template <int Q>
void pack_gradient(const float* dy, const float* y, int64_t stride, int64_t pixels,
                   int64_t features, float* packed, float* bias) {
  const int64_t last = min(features - (Q - 1) * lanes, lanes);  // features in the last vector
  vec sum[Q];
  for (int q = 0; q < Q; ++q) sum[q] = load(bias + q * lanes);
  for (int64_t pixel = 0; pixel < pixels; ++pixel, dy += stride, packed += Q * lanes) {
    for (int q = 0; q < Q; ++q) {
      const int64_t count = q < Q - 1 ? lanes : last;
      vec v = load_part(dy + q * lanes, count);
      if (y != nullptr) {
        v = where_positive(load_part(y + pixel * stride + q * lanes, count), v);
      }
      store(packed + q * lanes, v);
      sum[q] = add(sum[q], v);
    }
  }
  for (int q = 0; q < Q; ++q) store(bias + q * lanes, sum[q]);
}

}  // namespace

void conv2d_direct_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                                    const float* y, const float* x, float* dw, float* db) {
  const WeightsCut cut = cut_weights(s);
  const int64_t group_c = s.c / s.groups;
  if (s.n == 0) {
    clear(dw, cut.rows * s.oc);
    if (db != nullptr) clear(db, s.oc);
    return;
  }
  const int64_t block_rows = min(s.oh, max(1, block_pixels / s.ow));
  const int64_t channels = min(s.c, copied_channels);
  const CopiedBlock copy{CopiedAxis(s.kh, block_rows, s.stride_h, s.dilation_h, s.pad_top),
                         CopiedAxis(s.kw, s.ow, s.stride_w, s.dilation_w, s.pad_left), channels,
                         ceil_div(s.c, channels)};
  int64_t tiles = 0;
  for (int64_t p = 0; p < cut.panels; ++p) tiles += cut.row_tiles(p);
  // Where the chunks are too few to go round, their tiles are dealt out as well.
  const int threads = num_threads();
  const int64_t splits = min(tiles, ceil_div(items_per_thread * threads, cut.chunks));

  Scratch memory;
  const int64_t partial_at = memory.reserve<float>(cut.chunks * cut.partial);
  const int64_t bias_at = memory.reserve<float>(cut.chunks * cut.bias_partial);
  const int64_t x_size = copy.size();
  const int64_t dy_size = block_rows * s.ow * panel_lanes;
  const int64_t x_at = memory.reserve<float>(threads * x_size);
  const int64_t dy_at = memory.reserve<float>(threads * dy_size);
  const int64_t spare_at = memory.reserve<float>(threads * panel_lanes);
  const int64_t dw_rows_at = memory.reserve<int64_t>(s.groups * cut.rows);
  const int64_t offsets_at = memory.reserve<int64_t>(s.groups * cut.rows);
  memory.allocate();
  float* const partials = memory.at<float>(partial_at);
  float* const bias_partials = memory.at<float>(bias_at);
  clear(bias_partials, cut.chunks * cut.bias_partial);
  clear(memory.at<float>(spare_at), threads * panel_lanes);

  // The rows of the weights in the order in which tiles take them: a block of channels, then its
  // taps, so that the block's copy stays in the first-level cache for all of them. For each row,
  // where it finds its first pixel in the copy of x and which row of dw it is.
  int64_t* const offsets = memory.at<int64_t>(offsets_at);
  int64_t* const dw_rows = memory.at<int64_t>(dw_rows_at);
  for (int64_t group = 0, i = 0; group < s.groups; ++group) {
    for (int64_t c0 = 0; c0 < group_c; c0 += copied_channels) {
      for (int64_t kh = 0; kh < s.kh; ++kh) {
        for (int64_t kw = 0; kw < s.kw; ++kw) {
          for (int64_t ic = c0; ic < min(c0 + copied_channels, group_c); ++ic, ++i) {
            const int64_t c = group * group_c + ic;
            offsets[i] = c / copy.channels * copy.block_size() + c % copy.channels +
                         kh * copy.rows.tap * copy.row_size() + kw * copy.cols.tap * copy.channels;
            dw_rows[i] = (kh * s.kw + kw) * group_c + ic;
          }
        }
      }
    }
  }

  parallel_for(threads, cut.chunks * splits, [&](int64_t item, int worker) {
    const int64_t chunk = item / splits;
    const int64_t tile_begin = part_begin(tiles, splits, item % splits);
    const int64_t tile_end = part_begin(tiles, splits, item % splits + 1);
    const int64_t image_begin = part_begin(s.n, cut.chunks, chunk);
    const int64_t image_end = part_begin(s.n, cut.chunks, chunk + 1);
    float* const partial = partials + chunk * cut.partial;
    float* const bias_partial = bias_partials + chunk * cut.bias_partial;
    float* const x_copy = memory.at<float>(x_at) + worker * x_size;
    float* const dy_copy = memory.at<float>(dy_at) + worker * dy_size;
    bool first_block = true;
    for (int64_t image = image_begin; image < image_end; ++image) {
      for (int64_t row = 0; row < s.oh; row += block_rows) {
        const int64_t rows = min(block_rows, s.oh - row), pixels = rows * s.ow;
        copy_block(copy, s, x + image * s.h * s.w * s.c, row, x_copy);

        WeightsTile tile{};
        tile.x_pixel = copy.cols.output * copy.channels;
        tile.x_row = copy.rows.output * copy.row_size();
        tile.rows = rows;
        tile.pixels = s.ow;
        if (tile.x_row == tile.pixels * tile.x_pixel) {  // one run of pixels: no need to stop
          tile.pixels = pixels;
          tile.rows = 1;
        }
        tile.dy = dy_copy;
        tile.overwrite = first_block;

        int64_t panel_tiles = 0;  // tiles before this panel
        for (int64_t p = 0; p < cut.panels; ++p, panel_tiles += cut.row_tiles(p - 1)) {
          const int64_t row_tiles = cut.row_tiles(p);
          const int64_t begin = max(tile_begin - panel_tiles, 0);
          const int64_t end = min(tile_end - panel_tiles, row_tiles);
          if (begin >= end) continue;
          const int64_t vectors = cut.vectors(p);
          const int64_t group = p / cut.group_panels;
          const int64_t first = p % cut.group_panels * panel_lanes;
          const int64_t at = (image * s.oh + row) * s.ow * s.oc + group * cut.features + first;
          const float* mask = activation == Activation::relu ? y + at : nullptr;
          // Of the parts that share a panel, the one with its first tile adds up the bias.
          float* bias = begin == 0 ? bias_partial + group * padded_features(cut.features) + first
                                   : memory.at<float>(spare_at) + worker * panel_lanes;
          if (vectors == 2) {
            pack_gradient<2>(dy + at, mask, s.oc, pixels, cut.features - first, dy_copy, bias);
          } else {
            pack_gradient<1>(dy + at, mask, s.oc, pixels, cut.features - first, dy_copy, bias);
          }

          int64_t r0 = part_begin(cut.rows, row_tiles, begin);
          Parts parts(cut.rows, row_tiles, begin);
          for (int64_t t = begin; t < end; ++t) {
            const int64_t r1 = r0 + parts.next();
            for (int64_t r = r0; r < r1; ++r) {
              tile.x[r - r0] = x_copy + offsets[group * cut.rows + r];
            }
            tile.dw = partial + cut.panel_at(p) + r0 * vectors * lanes;
            run_tile(tile, vectors, r1 - r0);
            r0 = r1;
          }
        }
        first_block = false;
      }
    }
  });

  // Add the chunks up, in their order.
  constexpr int64_t rows_per_item = 64;
  const int64_t row_parts = ceil_div(cut.rows, rows_per_item);
  parallel_for(threads, cut.panels * row_parts, [&](int64_t item, int) {
    const int64_t p = item / row_parts;
    const int64_t panel_width = cut.vectors(p) * lanes;
    const int64_t group = p / cut.group_panels, first = p % cut.group_panels * panel_lanes;
    const int64_t r0 = item % row_parts * rows_per_item;
    const int64_t r1 = min(r0 + rows_per_item, cut.rows);
    for (int64_t r = r0; r < r1; ++r) {
      float* const to = dw + dw_rows[group * cut.rows + r] * s.oc + group * cut.features + first;
      const float* const from = partials + cut.panel_at(p) + r * panel_width;
      for (int64_t f = 0; f < panel_width; f += lanes) {
        vec sum = load(from + f);
        for (int64_t chunk = 1; chunk < cut.chunks; ++chunk) {
          sum = add(sum, load(from + chunk * cut.partial + f));
        }
        store_n(to + f, sum, min(lanes, cut.features - first - f));
      }
    }
  });
  for (int64_t i = 0; i < s.oc && db != nullptr; ++i) {
    const float* from =
        bias_partials + i / cut.features * padded_features(cut.features) + i % cut.features;
    float sum = from[0];
    for (int64_t chunk = 1; chunk < cut.chunks; ++chunk) sum += from[chunk * cut.bias_partial];
    db[i] = sum;
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
