// Direct convolution for any kernel size, stride, padding, dilation, groups: forward and the
// gradient with respect to the data. The weight gradient is in conv2d_direct_weights.cpp.
//
// Both multiply every tap with every channel, and nothing is unrolled into a matrix. They are one
// algorithm, the sum over taps, with the axes' taps taken forwards or backwards (axis_taps.hpp) and
// the weights packed as they are or transposed; the inner loops are in tiles.hpp. Where a batch has
// only a few pixels, weights are read where they lie: packing them would take longer than all
// multiplications.
//
// Deterministic: every output element is summed in one fixed order, however the work is cut.
#include <math.h>

#include "axis_taps.hpp"
#include "conv2d.hpp"
#include "tiles.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// Bytes of activations that one work item should touch, to stay in a core's second-level cache.
constexpr int64_t item_bytes = 320 * 1024;

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
  const float* source_mask;              // if not null, source counts where this is positive
  int64_t source_h, source_w, channels;  // channels, features: in a group
  float* result;
  int64_t result_h, result_w, features;
  const float* bias;
  bool relu;
  // Where the weights have element (tap, k, f) of group g.
  const float* weights;
  int64_t weight_tap, weight_k, weight_f, weight_group;
  // Whether channels, all numbers of bfloat16, are multiplied in pairs.
  bool in_pairs = false;

  // What a sum takes of each tap.
  int64_t depth() const { return in_pairs ? ceil_div(channels, 2) : channels; }
  // The source is copied, without what its mask hides, or in pairs.
  bool copies() const { return source_mask != nullptr || in_pairs; }
  int64_t positions() const { return n * result_h * result_w; }
  int64_t weights_bytes() const {
    return float_bytes * kernel_h * kernel_w * depth() * groups * features;
  }
};

// Which rows and columns of the kernel reach the source from anywhere.
struct UsedTaps {
  bool *rows, *cols;
};
void mark_used(const AxisTaps& axis, int64_t kernel, bool* used) {
  for (int64_t k = 0; k < kernel; ++k) used[k] = false;
  for (int64_t i = 0; i < axis.class_count; ++i) {
    for (int64_t t = 0; t < axis.classes[i].tap_count; ++t) used[axis.classes[i].taps[t].k] = true;
  }
}

// Copies rows [first, last) of a tap's weights for a panel, each to the lanes of the panel, filled
// up with zeros.
void pack_rows(const TapConvolution& conv, const float* from, int64_t features, int64_t first,
               int64_t last, float* to, int64_t width) {
  if (conv.weight_f == 1) {
    const int64_t from_row = conv.weight_k;
    from += first * from_row;
    for (int64_t k = first; k < last; ++k, from += from_row, to += width) {
      for (int64_t f = 0; f < width; f += lanes) {
        store(to + f, load_part(from + f, min(lanes, features - f)));
      }
    }
    return;
  }
  // Transposed: k is what lies contiguous.
  transpose(from + first, conv.weight_f, features, last - first, to, width);
  for (int64_t k = first; k < last; ++k, to += width) {
    for (int64_t f = features; f < width; ++f) to[f] = 0.0f;
  }
}

// Copies panels of a group of the weights, each to [tap][row or pair of rows][lanes of the panel].
// Taps that reach no source element are left out. Of several panels, what lies behind one another
// is read together.
void pack_panels(const TapConvolution& conv, const UsedTaps& used, int64_t group, int64_t begin,
                 int64_t end, float* packed) {
  constexpr int64_t line = 16;
  const int64_t taps = conv.kernel_h * conv.kernel_w, depth = conv.depth();
  const float* const weights = conv.weights + group * conv.weight_group;
  for (int64_t tap = 0; tap < taps; ++tap) {
    if (!used.rows[tap / conv.kernel_w] || !used.cols[tap % conv.kernel_w]) continue;
    for (int64_t first = 0; first < conv.channels; first += line) {
      const int64_t last = min(first + line, conv.channels);
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t width = panel_vectors(conv.features, panel) * lanes;
        const int64_t features = min(conv.features - panel * panel_lanes, width);
        const float* const from =
            weights + tap * conv.weight_tap + panel * panel_lanes * conv.weight_f;
        float* const to =
            packed + (panel - begin) * taps * depth * panel_lanes + tap * depth * width;
        if (!conv.in_pairs) {
          pack_rows(conv, from, features, first, last, to + first * width, width);
          continue;
        }
        float rows[line * panel_lanes];
        pack_rows(conv, from, features, first, last, rows, width);
        for (int64_t k = first; k < last; k += 2) {
          const float* const row = rows + (k - first) * width;
          for (int64_t f = 0; f < width; f += lanes) {
            // A last row without a second one: times -0 adds nothing, not even to -0.
            const vec second = k + 1 < last ? load(row + width + f) : broadcast(-0.0f);
            store(to + k / 2 * width + f, pair(load(row + f), second));
          }
        }
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

// The taps of every pair of a row class and a column class, one pair after the other.
struct TapTable {
  Tap* taps;
  int64_t* counts;

  static int64_t size(const TapConvolution& conv) {
    int64_t size = 0;
    for (int64_t r = 0; r < conv.rows.class_count; ++r) {
      for (int64_t c = 0; c < conv.cols.class_count; ++c) {
        size += conv.rows.classes[r].tap_count * conv.cols.classes[c].tap_count;
      }
    }
    return size;
  }
  static int64_t pairs(const TapConvolution& conv) {
    return conv.rows.class_count * conv.cols.class_count;
  }
  // With `join`, neighbouring taps of a row become one where a pixel's channels are all in the
  // group.
  void fill(const TapConvolution& conv, bool join) const {
    const int64_t pixel = conv.groups * conv.depth();
    Tap* end = taps;
    int64_t* count = counts;
    for (int64_t r = 0; r < conv.rows.class_count; ++r) {
      for (int64_t c = 0; c < conv.cols.class_count; ++c) {
        const AxisClass& row = conv.rows.classes[r];
        const AxisClass& col = conv.cols.classes[c];
        Tap* const begin = end;
        for (int64_t i = 0; i < row.tap_count; ++i) {
          for (int64_t j = 0; j < col.tap_count; ++j) {
            int64_t k = col.taps[j].k;
#ifdef PYCONV_BREAK_A_TAP
            // Wrong on purpose, for tests of what finds such errors: over an odd number of channels
            // the last of several taps in a row gets the weights of the one before it.
            if (conv.channels % 2 == 1 && j > 0 && j == col.tap_count - 1) k = col.taps[j - 1].k;
#endif
            const Tap tap{(row.taps[i].offset * conv.source_w + col.taps[j].offset) * pixel,
                          (row.taps[i].k * conv.kernel_w + k) * conv.depth(), conv.depth()};
            if (join && end > begin && end[-1].x + end[-1].depth == tap.x &&
                end[-1].w + end[-1].depth == tap.w) {
              end[-1].depth += tap.depth;
            } else {
              *end++ = tap;
            }
          }
        }
        *count++ = end - begin;
      }
    }
  }
};

// The positions of a pair of classes, along the columns, then the rows, then the images.
class Positions {
 public:
  Positions(const TapConvolution& conv, const PositionRange& rows, const AxisClass& cols,
            int64_t images)
      : rows_(rows),
        cols_(cols),
        x_pixel_(conv.groups * conv.depth()),
        y_pixel_(conv.groups * conv.features),
        x_line_(conv.source_w * x_pixel_),
        y_line_(conv.result_w * y_pixel_),
        x_step_(conv.source_h * x_line_),
        y_step_(conv.result_h * y_line_),
        count(images * rows.count * cols.position_count) {
    if (count > 0) start_row();
  }
  // Where the next one's source and result begin.
  template <class Tile>
  [[gnu::always_inline]] void next(const float* x, float* y, Tile& tile, int64_t index) {
    tile.x[index] = x + x_image_ + x_row_ + cols_.positions[j_].origin * x_pixel_;
    tile.y[index] = y + y_image_ + y_row_ + cols_.positions[j_].out * y_pixel_;
    if (++j_ < cols_.position_count) return;
    j_ = 0;
    if (++i_ == rows_.count) {
      i_ = 0;
      x_image_ += x_step_;
      y_image_ += y_step_;
    }
    start_row();
  }

 private:
  void start_row() {
    x_row_ = rows_.first[i_].origin * x_line_;
    y_row_ = rows_.first[i_].out * y_line_;
  }
  PositionRange rows_;
  const AxisClass& cols_;
  int64_t x_pixel_, y_pixel_, x_line_, y_line_, x_step_, y_step_;
  int64_t i_ = 0, j_ = 0, x_row_ = 0, y_row_ = 0, x_image_ = 0, y_image_ = 0;

 public:
  const int64_t count;
};

// body(taps, tap_count, positions) for every pair of classes, for some rows of the result of some
// images.
template <class Body>
void for_class_pairs(const TapConvolution& conv, const TapTable& table, int64_t row_begin,
                     int64_t row_end, int64_t images, const Body& body) {
  const Tap* taps = table.taps;
  const int64_t* count = table.counts;
  for (int64_t r = 0; r < conv.rows.class_count; ++r) {
    const PositionRange rows = positions_between(conv.rows.classes[r], row_begin, row_end);
    for (int64_t c = 0; c < conv.cols.class_count; ++c, taps += *count++) {
      body(taps, *count, Positions(conv, rows, conv.cols.classes[c], images));
    }
  }
}

// Every other channel with the next one in a lane, a last one with zero.
void pair_channels(const float* from, const float* mask, int64_t count, float* to) {
  const auto read = [=](int64_t at, int64_t part) {
    const vec v = load_part(from + at, part);
    return mask == nullptr ? v : where_positive(load_part(mask + at, part), v);
  };
  for (int64_t i = 0; i < count; i += 2 * lanes) {
    const int64_t part = min(count - i, 2 * lanes);
    const vec a = read(i, min(part, lanes));
    const vec b = part > lanes ? read(i + lanes, part - lanes) : zero();
    store_part(to + i / 2, pair(even_lanes(a, b), odd_lanes(a, b)), ceil_div(part, 2));
  }
}
// Copies some of the source's rows of a group's channels, as conv.copies() says.
void copy_source(const TapConvolution& conv, int64_t begin, int64_t end, float* to) {
  const float* const from = conv.source + begin * conv.channels;
  const float* const mask = behind(conv.source_mask, begin * conv.channels);
  const int64_t rows = end - begin;
  if (!conv.in_pairs) {
    masked_copy(from, mask, to, rows * conv.channels);
  } else if (conv.channels % 2 == 0) {
    pair_channels(from, mask, rows * conv.channels, to);
  } else {
    for (int64_t row = 0; row < rows; ++row) {
      pair_channels(from + row * conv.channels, behind(mask, row * conv.channels), conv.channels,
                    to + row * conv.depth());
    }
  }
}

// Who packs the panels of the weights.
enum class Packing {
  kept,     // the caller keeps them packed
  nobody,   // they are multiplied as they lie
  at_once,  // all together, before the items
  workers,  // each worker all of them: what another core has just written is slow to fetch
  items,    // each item its own: with many weights for few results, they do not leave the cache
};
// How the work is cut: an item is some images, some rows of the result, some panels. Any cut gives
// the same bits, so it may depend on the number of threads.
struct Cut {
  int64_t images, image_parts, row_parts, panel_parts;
  Packing packing;
};

// Whether the weights are multiplied as they lie: a panel's rows are contiguous, though far apart,
// and few tiles of results would make up for packing them. Where pairs of classes meet the same
// weights one after the other, these must stay in the second-level cache meanwhile.
bool weights_as_they_lie(const TapConvolution& conv) {
  constexpr int64_t most_positions = 3 * max_tile_rows, most_bytes = 5 << 19;
  return conv.weight_f == 1 && conv.weight_tap == conv.channels * conv.weight_k && !conv.in_pairs &&
         conv.features % lanes == 0 && conv.positions() <= most_positions &&
         (TapTable::pairs(conv) == 1 || conv.weights_bytes() <= most_bytes);
}
// How many tiles the positions of so many images are.
int64_t tiles(const TapConvolution& conv, int64_t images) {
  const int64_t rows = tile_rows[panel_vectors(conv.features, 0)];
  int64_t count = 0;
  for (int64_t r = 0; r < conv.rows.class_count; ++r) {
    for (int64_t c = 0; c < conv.cols.class_count; ++c) {
      count += ceil_div(
          images * conv.rows.classes[r].position_count * conv.cols.classes[c].position_count, rows);
    }
  }
  return count;
}
Cut cut_work(const TapConvolution& conv, int64_t panels, int threads, bool kept) {
  // Of the packed panels of an item, which should stay in the nearer caches; several are read
  // together, as a panel's row is one cache line.
  constexpr int64_t panel_bytes = 1024 * 1024, most_panels = 4;
  const int64_t source_bytes =
      float_bytes * conv.groups * conv.source_h * conv.source_w * conv.depth();
  const int64_t result_bytes =
      float_bytes * conv.groups * conv.result_h * conv.result_w * conv.features;
  const int64_t panel_rows = conv.kernel_h * conv.kernel_w * conv.depth();
  const int64_t packed_bytes = float_bytes * panels * panel_rows * panel_lanes;
  const int64_t wanted = items_per_thread * threads;
  Cut cut{};
  if (!kept && weights_as_they_lie(conv)) {
    cut.images = conv.n;
    cut.image_parts = cut.row_parts = 1;
    cut.panel_parts = min(panels, wanted);
    cut.packing = Packing::nobody;
    return cut;
  }
  // Otherwise every item would go through all results, a few features at a time.
  const bool many_weights = packed_bytes >= conv.n * result_bytes &&
                            conv.n * source_bytes <= max(item_bytes, packed_bytes / 4);
  if (panels >= 2 * threads && many_weights) {
    const int64_t together =
        max(1, min(most_panels, panel_bytes / max(1, panel_rows * panel_lanes * float_bytes)));
    cut.images = conv.n;
    cut.image_parts = cut.row_parts = 1;
    cut.panel_parts = max(ceil_div(panels, together), min(panels, wanted));
    cut.packing = Packing::items;
    return cut;
  }
  // Few results: by panels first, so that every thread fetches and packs its part of the weights
  // only.
  constexpr int64_t few_positions = 8 * max_tile_rows;
  if (conv.positions() <= few_positions && !conv.copies()) {
    cut.images = conv.n;
    cut.image_parts = 1;
    cut.panel_parts = min(panels, threads);
    cut.row_parts = min(conv.result_h, ceil_div(threads, cut.panel_parts));
    cut.packing = Packing::items;
    return cut;
  }
  constexpr int64_t own_bytes = 256 * 1024;
  cut.packing = packed_bytes <= own_bytes ? Packing::workers : Packing::at_once;
  // Weights that would not stay in a core's cache beside their results: every thread has the panels
  // that it packs, which costs one more reading of the source.
  if (cut.packing == Packing::at_once && panels >= 2 * threads &&
      conv.n * source_bytes <= 2 * packed_bytes) {
    cut.images = conv.n;
    cut.image_parts = 1;
    cut.panel_parts = threads;
    cut.row_parts = min(conv.result_h, items_per_thread);
    return cut;
  }
  // Small images go several to an item, so that borders of one pixel still fill a tile; even if
  // items become few, where that saves many tiles.
  const int64_t most_images =
      min(conv.n, max(1, min(2 * max_tile_rows, item_bytes / max(source_bytes + result_bytes, 1))));
  cut.images = max(1, min(most_images, conv.n / wanted));
  if (2 * tiles(conv, cut.images) * most_images > 3 * tiles(conv, most_images) * cut.images) {
    cut.images = most_images;
  }
  cut.image_parts = ceil_div(conv.n, cut.images);
  cut.row_parts = min(conv.result_h, max(ceil_div(wanted, max(cut.image_parts, 1)),
                                         ceil_div(source_bytes + result_bytes, item_bytes)));
  cut.panel_parts = min(panels, ceil_div(wanted, max(cut.image_parts * cut.row_parts, 1)));
  if (conv.copies()) cut.panel_parts = 1;  // each would copy the source again
  return cut;
}

// By itself, so that the loops around it stay as they are.
[[gnu::noinline]] void run_in_pairs(const ForwardTile& tile, int64_t vectors, int64_t rows) {
  run_tile(InPairs{tile}, vectors, rows);
}

void run(const TapConvolution& conv) {
  const int64_t kernel_size = conv.kernel_h * conv.kernel_w;
  const int64_t source_c = conv.groups * conv.depth(), result_c = conv.groups * conv.features;
  const int64_t source_row = conv.source_w * source_c, source_image = conv.source_h * source_row;
  const int64_t result_row = conv.result_w * result_c, result_image = conv.result_h * result_row;
  const int64_t group_panels = panel_count(conv.features);
  const int64_t panels = conv.groups * group_panels;
  const int64_t panel_size =
      kernel_size * conv.depth() * panel_lanes;  // the last of a group: or a half
  const int64_t group_weights = kernel_size * conv.depth() * padded_features(conv.features);
  const int threads = num_threads();
  KeptWeights* const kept = kept_weights();
  Cut cut = cut_work(conv, panels, threads, kept != nullptr);
  if (kept != nullptr) cut.packing = Packing::kept;
  const int64_t item_panels = ceil_div(panels, cut.panel_parts);
  // Panels that a tile of positions goes through before the next tile: as many as stay in the
  // first-level cache, or all of them where there is no next tile; else one.
  constexpr int64_t first_level_bytes = 20 * 1024;
  const bool as_they_lie = cut.packing == Packing::nobody;
  const bool one_tile = conv.positions() <= few_rows;
  const int64_t together = as_they_lie ? 1
                           : one_tile  ? item_panels
                                       : max(1, first_level_bytes / (panel_size * float_bytes));

  Scratch memory;
  const int64_t all_panels = conv.groups * group_weights;
  const int64_t packed_at = memory.reserve<float>(cut.packing == Packing::at_once ? all_panels : 0);
  const int64_t ready_at = memory.reserve<bool>(threads);
  const int64_t taps_at = memory.reserve<Tap>(TapTable::size(conv));
  const int64_t tap_counts_at = memory.reserve<int64_t>(TapTable::pairs(conv));
  const int64_t rows_used_at = memory.reserve<bool>(conv.kernel_h);
  const int64_t cols_used_at = memory.reserve<bool>(conv.kernel_w);
  // The copy of the source: items that have all images share it, others have rows.
  const int64_t copied_size = conv.copies() ? cut.images * source_image : 0;
  const bool copied_once = cut.panel_parts > 1;
  const int64_t copied_at = memory.reserve<float>(copied_once ? copied_size : 0);
  memory.allocate();

  const UsedTaps used{memory.at<bool>(rows_used_at), memory.at<bool>(cols_used_at)};
  mark_used(conv.rows, conv.kernel_h, used.rows);
  mark_used(conv.cols, conv.kernel_w, used.cols);
  if (kept != nullptr) {  // other calls, for other batches, may use more
    for (int64_t k = 0; k < conv.kernel_h; ++k) used.rows[k] = true;
    for (int64_t k = 0; k < conv.kernel_w; ++k) used.cols[k] = true;
  }
  const auto panel_at = [&](int64_t panel) {
    return panel / group_panels * group_weights + panel % group_panels * panel_size;
  };
  const auto pack = [&](int64_t panel, float* packed) {
    const int64_t group = panel / group_panels, in_group = panel % group_panels;
    pack_panels(conv, used, group, in_group, in_group + 1, packed + panel_at(panel));
  };
  const auto pack_all = [&](float* packed) {
    parallel_for(threads, panels, [&](int64_t panel, int) { pack(panel, packed); });
  };
  const float* all_packed = memory.at<float>(packed_at);
  if (cut.packing == Packing::kept) {
    const auto layout = conv.in_pairs ? KeptWeights::packed_pairs : KeptWeights::packed;
    all_packed = get_kept(*kept, layout, all_panels, pack_all);
  } else if (cut.packing == Packing::at_once) {
    pack_all(memory.at<float>(packed_at));
  }
  bool* const ready = memory.at<bool>(ready_at);
  for (int worker = 0; worker < threads; ++worker) ready[worker] = false;
  const int64_t pixel_rows = conv.groups * conv.source_w;  // of channels, in a row of pixels
  float* const copied_source = memory.at<float>(copied_at);
  if (copied_once && conv.copies()) {
    const int64_t piece = max(1, 16 * 1024 / conv.channels);
    parallel_ranges(cut.images * conv.source_h * pixel_rows, piece,
                    [&](int64_t begin, int64_t end) {
                      copy_source(conv, begin, end, copied_source + begin * conv.depth());
                    });
  }

  const TapTable table{memory.at<Tap>(taps_at), memory.at<int64_t>(tap_counts_at)};
  table.fill(conv, true);

  const int64_t items = cut.image_parts * cut.row_parts * cut.panel_parts;
  parallel_for(threads, items, [&](int64_t item, int worker) {
    const int64_t row_part = item % cut.row_parts;
    const int64_t image_part = item / cut.row_parts % cut.image_parts;
    const int64_t panel_part = item / cut.row_parts / cut.image_parts;
    const int64_t row_begin = part_begin(conv.result_h, cut.row_parts, row_part);
    const int64_t row_end = part_begin(conv.result_h, cut.row_parts, row_part + 1);
    const int64_t image_begin = image_part * cut.images;
    const int64_t images = min(cut.images, conv.n - image_begin);

    Scratch own;
    const int64_t panels_at =
        own.reserve<float>(cut.packing == Packing::workers ? all_panels
                           : cut.packing == Packing::items ? item_panels * panel_size
                                                           : 0);
    const int64_t own_copied_at = own.reserve<float>(copied_once ? 0 : copied_size);
    own.allocate(ScratchUse::worker);
    float* const own_panels = own.at<float>(panels_at);
    if (cut.packing == Packing::workers && !ready[worker]) {
      for (int64_t panel = 0; panel < panels; ++panel) pack(panel, own_panels);
      ready[worker] = true;
    }

    const float* source = conv.source + image_begin * source_image;
    float* const result = conv.result + image_begin * result_image;
    if (conv.copies() && copied_once) {
      source = copied_source;
    } else if (conv.copies()) {
      float* const copied = own.at<float>(own_copied_at);
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
        const int64_t begin = (image_begin + image) * conv.source_h;
        copy_source(conv, (begin + first) * pixel_rows, (begin + last + 1) * pixel_rows,
                    copied + image * source_image + first * source_row);
      }
      source = copied;
    }

    ForwardTile tile{};
    tile.least = conv.relu ? 0.0f : -HUGE_VALF;
    tile.w_panel = panel_size;
    const int64_t panel_begin = part_begin(panels, cut.panel_parts, panel_part);
    const int64_t panel_end = part_begin(panels, cut.panel_parts, panel_part + 1);
    if (cut.packing == Packing::items) {
      for (int64_t p = panel_begin, next = p; p < panel_end; p = next) {
        const int64_t group = p / group_panels, group_end = (group + 1) * group_panels;
        next = min(panel_end, group_end);
        pack_panels(conv, used, group, p % group_panels, p % group_panels + next - p,
                    own_panels + (p - panel_begin) * panel_size);
      }
    }
    for (int64_t p = panel_begin, next = p; p < panel_end; p = next) {
      const int64_t group = p / group_panels;
      next = min(min(p + together, panel_end), (group + 1) * group_panels);
      const int64_t feature = p % group_panels * panel_lanes;  // in the group
      // The first panel has two vectors if any of them has.
      const int64_t rows = tile_rows[panel_vectors(conv.features, p % group_panels)];
      const float* const x = source + group * conv.depth();
      float* const y = result + group * conv.features + feature;
      const auto run_pair = [&](const Tap* taps, int64_t tap_count, Positions positions) {
        tile.taps = taps;
        tile.tap_count = tap_count;
        const int64_t tiles = ceil_div(positions.count, rows);
        Parts parts(positions.count, tiles);
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t count = parts.next();
          for (int64_t k = 0; k < count; ++k) positions.next(x, y, tile, k);
          for (int64_t q = p; q < next; q += tile.panels) {
            const int64_t first = q % group_panels * panel_lanes;
            switch (cut.packing) {
              case Packing::nobody:
                tile.w = conv.weights + group * conv.weight_group + first;
                break;
              case Packing::kept:
              case Packing::at_once:
                tile.w = all_packed + panel_at(q);
                break;
              case Packing::workers:
                tile.w = own_panels + panel_at(q);
                break;
              case Packing::items:
                tile.w = own_panels + (q - panel_begin) * panel_size;
                break;
            }
            tile.features = conv.features - first;
            tile.panels = max(1, min(next - q, tile.features / panel_lanes));
            tile.bias = conv.bias != nullptr ? conv.bias + group * conv.features + first : nullptr;
            const int64_t vectors = panel_vectors(conv.features, q % group_panels);
            if (as_they_lie) {
              run_tile(AsTheyLie{tile, conv.weight_k}, vectors, count);
            } else if (conv.in_pairs) {
              run_in_pairs(tile, vectors, count);
            } else {
              run_tile(tile, vectors, count);
            }
            for (int64_t k = 0; k < count; ++k) tile.y[k] += tile.panels * panel_lanes;
          }
        }
      };
      for_class_pairs(conv, table, row_begin, row_end, images, run_pair);
    }
  });
}

// ---------------------------------------------------------------------------------------------
// The sum over taps for few results, where packing the weights costs more than multiplying by them

// The source of few results, masked if it has a mask.
struct FewPositions {
  TapTable table;
  const float* source;
  Scratch memory;
  int64_t taps_at, counts_at;

  explicit FewPositions(const TapConvolution& conv)
      : source(conv.source),
        taps_at(memory.reserve<Tap>(TapTable::size(conv))),
        counts_at(memory.reserve<int64_t>(TapTable::pairs(conv))) {
    const int64_t size = conv.n * conv.source_h * conv.source_w * conv.groups * conv.channels;
    const int64_t masked_at = memory.reserve<float>(conv.source_mask != nullptr ? size : 0);
    memory.allocate();
    table = {memory.at<Tap>(taps_at), memory.at<int64_t>(counts_at)};
    table.fill(conv, false);
    if (conv.source_mask == nullptr) return;
    float* const masked = memory.at<float>(masked_at);
    masked_copy(conv.source, conv.source_mask, masked, size);
    source = masked;
  }
};

// Forward: weights are read as they lie, row by row: sum[f] += x[k] * w[k, f]. Row after row, as
// elsewhere, so that the same sums come out as of packed weights.

// Of `count` features in V vectors, whose sums stay in registers.
constexpr int most_narrow = 8;
template <int V>
[[gnu::noinline]] void add_narrow_rows(const float* x, const float* w, int64_t w_row, int64_t depth,
                                       int64_t count, float* sum) {
  const int64_t last = count - (V - 1) * lanes;
  const auto part = [=](int v) { return v < V - 1 ? lanes : last; };
  vec sums[1][V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sums[0][v] = load_part(sum + v * lanes, part(v));
  for (int64_t k = 0; k < depth; ++k, w += w_row) {
    add_products(
        sums, [&](int) { return broadcast(x[k]); },
        [&](int v) { return load_part(w + v * lanes, part(v)); });
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store_part(sum + v * lanes, sums[0][v], part(v));
}

// Of more features K rows at a time.
constexpr int64_t most_rows = 8;
template <int K>
void add_wide_rows(const float* x, const float* w, int64_t w_row, int64_t count, float* sum) {
  vec value[K];
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) value[k] = broadcast(x[k]);
  for (int64_t f = 0; f < count; f += lanes) {
    const int64_t part = min(lanes, count - f);
    vec s = load_part(sum + f, part);
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) s = fmadd(value[k], load_part(w + k * w_row + f, part), s);
    store_part(sum + f, s, part);
  }
}

template <int V = most_narrow>
void add_rows(const float* x, const float* w, int64_t w_row, int64_t depth, int64_t count,
              float* sum) {
  if constexpr (V == 0) {
    int64_t k = 0;
    for (; k + most_rows <= depth; k += most_rows) {
      add_wide_rows<most_rows>(x + k, w + k * w_row, w_row, count, sum);
    }
    for (; k < depth; ++k) add_wide_rows<1>(x + k, w + k * w_row, w_row, count, sum);
  } else if (ceil_div(count, lanes) == V) {
    add_narrow_rows<V>(x, w, w_row, depth, count, sum);
  } else {
    add_rows<V - 1>(x, w, w_row, depth, count, sum);
  }
}

bool few_enough_for_rows(const TapConvolution& conv) {
  constexpr int64_t most_positions = 2;
  // Many weights are better kept packed, in the order in which they are read.
  constexpr int64_t most_kept_bytes = 128 * 1024;
  const bool kept_better = kept_weights() != nullptr && conv.weights_bytes() > most_kept_bytes;
  return conv.weight_f == 1 && !kept_better && conv.positions() <= most_positions;
}
void run_rows(const TapConvolution& conv) {
  const FewPositions few(conv);
  // A stretch of features, so that its sums stay in the first-level cache.
  constexpr int64_t most_features = 1024;
  const int64_t wanted = ceil_div(conv.features * conv.groups, num_threads());
  const int64_t stretch =
      max(panel_lanes, min(most_features, ceil_div(wanted, panel_lanes) * panel_lanes));
  const int64_t stretches = ceil_div(conv.features, stretch);
  parallel_for(num_threads(), conv.groups * stretches, [&](int64_t item, int) {
    const int64_t group = item / stretches, first = item % stretches * stretch;
    const int64_t count = min(stretch, conv.features - first);
    const float* const weights = conv.weights + group * conv.weight_group + first;
    const int64_t feature = group * conv.features + first;
    ForwardTile tile{};
    const auto run_pair = [&](const Tap* taps, int64_t tap_count, Positions positions) {
      for (int64_t p = 0; p < positions.count; ++p) {
        positions.next(few.source + group * conv.channels, conv.result + feature, tile, 0);
        float* const y = tile.y[0];
        if (conv.bias != nullptr) {
          copy(y, conv.bias + feature, count);
        } else {
          clear(y, count);
        }
        for (int64_t t = 0; t < tap_count; ++t) {
          const Tap& tap = taps[t];
          const float* const x = tile.x[0] + tap.x;
          const float* const w = weights + tap.w / tap.depth * conv.weight_tap;
          add_rows(x, w, conv.weight_k, tap.depth, count, y);
        }
        const vec least = broadcast(conv.relu ? 0.0f : -HUGE_VALF);
        for (int64_t f = 0; f < count; f += lanes) {
          const int64_t part = min(lanes, count - f);
          store_part(y + f, at_least(least, load_part(y + f, part)), part);
        }
      }
    };
    for_class_pairs(conv, few.table, 0, conv.result_h, conv.n, run_pair);
  });
}

// Data gradient: every result is a product of two vectors that lie contiguous, along the channels
// that are summed over.
bool few_enough_for_dots(const TapConvolution& conv) {
  // Of so many positions packing the weights takes as long as multiplying them again for each,
  // which adds up lanes for every result. With several taps, most positions meet some of them only.
  constexpr int64_t least = 2, terms_per_position = 10, most_of_taps = 48;
  constexpr int64_t most = 10, terms_per_more = 256;
  const int64_t taps = conv.kernel_h * conv.kernel_w, terms = taps * conv.channels;
  const int64_t limit = taps > 1 ? most_of_taps : most + terms / terms_per_more;
  const bool fill_vectors = conv.channels >= 2 * lanes || (taps == 1 && conv.features >= lanes);
  return conv.weight_k == 1 && fill_vectors &&
         conv.positions() <= min(limit, least + terms / terms_per_position);
}
void run_dots(const TapConvolution& conv) {
  // Of a stretch of features, which positions read one after the other from the first-level cache.
  constexpr int64_t weight_bytes = 16 * 1024;
  const FewPositions few(conv);
  const int64_t feature_bytes = float_bytes * conv.kernel_h * conv.kernel_w * conv.channels;
  const int64_t most = max(1, weight_bytes / feature_bytes / lanes) * lanes;
  const int64_t wanted = ceil_div(items_per_thread * num_threads(), conv.groups);
  const int64_t vectors = conv.features / lanes;
  const int64_t stretches = max(1, min(vectors, max(wanted, ceil_div(conv.features, most))));
  parallel_for(num_threads(), conv.groups * stretches, [&](int64_t item, int) {
    const int64_t group = item / stretches, part = item % stretches;
    const int64_t first = part_begin(vectors, stretches, part) * lanes;
    // Features that do not fill a vector go to the last one.
    const int64_t end =
        part + 1 < stretches ? part_begin(vectors, stretches, part + 1) * lanes : conv.features;
    DotTile tile{};
    tile.features = end - first;
    tile.w = conv.weights + group * conv.weight_group + first * conv.weight_f;
    tile.w_feature = conv.weight_f;
    tile.w_tap = conv.weight_tap;
    const auto run_pair = [&](const Tap* taps, int64_t tap_count, Positions positions) {
      tile.taps = taps;
      tile.tap_count = tap_count;
      for (int64_t p = 0; p < positions.count; ++p) {
        positions.next(few.source + group * conv.channels,
                       conv.result + group * conv.features + first, tile, 0);
        run_tile(tile);
      }
    };
    for_class_pairs(conv, few.table, 0, conv.result_h, conv.n, run_pair);
  });
}

AxisGeometry row_geometry(const Conv2dShape& s) {
  return {s.h, s.oh, s.kh, s.stride_h, s.pad_top, s.dilation_h};
}
AxisGeometry col_geometry(const Conv2dShape& s) {
  return {s.w, s.ow, s.kw, s.stride_w, s.pad_left, s.dilation_w};
}

// Of numbers of bfloat16 in pairs, where half of the multiply-adds are worth a copy of the source,
// which takes as long as some sixteen for every vector of it.
TapConvolution paired(TapConvolution conv, bool bfloat16) {
  constexpr int64_t least = 16;
  conv.in_pairs = bfloat16 && multiplies_pairs(pairs_by_instruction) && conv.channels > 1 &&
                  conv.kernel_h * conv.kernel_w * conv.features >= least;
  return conv;
}

// x with its padding, [n, padded_h, padded_w, c].
const float* padded_copy(const Conv2dShape& s, const float* x) {
  const int64_t height = padded_h(s), width = padded_w(s), size = height * width * s.c;
  float* const padded = static_cast<float*>(
      scratch(static_cast<size_t>(s.n * size) * sizeof(float), ScratchUse::padded));
  for (int64_t n = 0; n < s.n; ++n) {
    copy_padded(s, x + n * s.h * s.w * s.c, -s.pad_top, -s.pad_left, height, width,
                padded + n * size);
  }
  return padded;
}

}  // namespace

// Of few results padding makes classes of even fewer each, which take as long as full tiles.
// Not where strides, dilation or padding make the copy much larger than image and kernel.
bool direct_pads(const Conv2dShape& s) {
  constexpr int64_t most_positions = 8 * max_tile_rows, most_growth = 4;
  if (s.n * s.oh * s.ow > most_positions) return false;
  const int64_t height = padded_h(s), width = padded_w(s);
  const bool inside = s.pad_top == 0 && s.pad_left == 0 && height <= s.h && width <= s.w;
  return !inside && height <= most_growth * (s.h + s.kh) && width <= most_growth * (s.w + s.kw);
}

void conv2d_direct(const Conv2dShape& s, Activation activation, const float* x, const float* w,
                   const float* b, float* y) {
  if (s.n == 0) return;
  // Its tiles are pixels of a row; a dense layer has one.
  constexpr int64_t least_pixels = 4;
  if (first_fits(s) && s.ow >= least_pixels) {
    conv2d_first(s, activation, x, w, b, y);
    return;
  }
  if (last_fits(s) && last_pays_forward(s)) {
    conv2d_last(s, activation, x, w, b, y);
    return;
  }
  if (direct_pads(s)) {
    Conv2dShape padded = s;
    padded.h = padded_h(s), padded.w = padded_w(s);
    padded.pad_top = padded.pad_left = 0;
    conv2d_direct(padded, activation, padded_copy(s, x), w, b, y);
    return;
  }
  const AxisTaps rows = AxisTaps::forward(row_geometry(s));
  const AxisTaps cols = AxisTaps::forward(col_geometry(s));
  const int64_t c = s.c / s.groups, oc = s.oc / s.groups;
  const TapConvolution conv{.rows = rows,
                            .cols = cols,
                            .kernel_h = s.kh,
                            .kernel_w = s.kw,
                            .n = s.n,
                            .groups = s.groups,
                            .source = x,
                            .source_mask = nullptr,
                            .source_h = s.h,
                            .source_w = s.w,
                            .channels = c,
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
                            .weight_group = oc};
  if (few_enough_for_rows(conv)) {
    run_rows(conv);
  } else {
    run(paired(conv, s.bfloat16));
  }
}

void conv2d_direct_backward_data(const Conv2dShape& s, Activation activation, const float* dy,
                                 const float* y, const float* w, float* dx) {
  if (s.n == 0) return;
  if (last_fits_data(s)) {
    conv2d_last_backward_data(s, activation, dy, y, w, dx);
    return;
  }
  const AxisTaps rows = AxisTaps::backward_data(row_geometry(s));
  const AxisTaps cols = AxisTaps::backward_data(col_geometry(s));
  const int64_t c = s.c / s.groups, oc = s.oc / s.groups;
  const TapConvolution conv{.rows = rows,
                            .cols = cols,
                            .kernel_h = s.kh,
                            .kernel_w = s.kw,
                            .n = s.n,
                            .groups = s.groups,
                            .source = dy,
                            .source_mask = activation == Activation::relu ? y : nullptr,
                            .source_h = s.oh,
                            .source_w = s.ow,
                            .channels = oc,
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
                            .weight_group = oc};
  if (few_enough_for_dots(conv)) {
    run_dots(conv);
  } else {
    run(paired(conv, s.bfloat16));
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
