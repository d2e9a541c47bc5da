// Direct convolution for any kernel size, stride, padding, dilation, groups: the gradient with
// respect to the weights, a sum over pixels. The inner loop is in tiles.hpp.
//
// Pixels are taken in blocks, some rows of an image or some small images. x and the panel of dy
// that a block meets are copied so that a tile of sums finds them in the first-level cache.
//
// Deterministic: sums run over chunks of blocks whose number depends on the shape only, and the
// chunks are added in their order.
#include "conv2d.hpp"
#include "tiles.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// Pixels of dy that are summed before moving on to the next tile: their panel of dy (64 bytes a
// pixel) and the cache lines of x that a tile touches (as many) share the first-level cache.
constexpr int64_t block_pixels = 256;
// The partial sums of all chunks together, so that writing and adding them stays cheap.
constexpr int64_t partial_bytes = 8 << 20;
constexpr int64_t max_chunks = 32;

// The weights of a group as a matrix [rows][features], rows being (kh, kw, ic), and the pixels as
// blocks: some rows of an image, or some images.
struct WeightsCut {
  int64_t rows, features, out_w;
  int64_t group_panels, panels;
  int64_t block_images, block_rows;
  int64_t image_blocks, blocks;  // in an image (or some images), in the batch
  int64_t chunks;                // of the blocks, by the shape alone: each has sums of its own

  explicit WeightsCut(const Conv2dShape& s)
      : rows(s.kh * s.kw * (s.c / s.groups)),
        features(s.oc / s.groups),
        out_w(s.ow),
        group_panels(panel_count(features)),
        panels(s.groups * group_panels),
        block_images(max(1, min(s.n, block_pixels / (s.oh * s.ow)))),
        block_rows(min(s.oh, max(1, block_pixels / s.ow))),
        image_blocks(ceil_div(s.oh, block_rows)),
        blocks(ceil_div(s.n, block_images) * image_blocks) {
    const int64_t bytes = float_bytes * rows * s.oc;
    chunks = max(1, min(min(blocks, max_chunks), partial_bytes / bytes));
  }
  int64_t block_size() const { return block_images * block_rows * out_w; }
  // Few pixels: sums are hardly kept in registers before they are stored, so the order of storing
  // counts. Tiles then run along the rows of dw, otherwise panel by panel.
  bool along_rows() const {
    constexpr int64_t most_bytes = 64 * 1024;  // of dy's panels
    return float_bytes * block_size() * panels * panel_lanes <= most_bytes;
  }
  int64_t vectors(int64_t panel) const { return panel_vectors(features, panel % group_panels); }
  // How many panels before `end` a tile may take at once: whole ones, of a group.
  int64_t run(int64_t panel, int64_t end) const {
    const int64_t in_group = panel % group_panels, whole = features / panel_lanes;
    return max(1, min(end - panel, whole - in_group));
  }
};

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

// Channels are copied in blocks, [block][image][row][column][channels of a block]: what a tile
// walks through then lies close together, whatever the number of channels. (In NHWC, pixels of 64
// channels are 256 bytes apart and share a quarter of the first-level cache's sets.)
constexpr int64_t copied_channels = max(8, lanes);

struct CopiedBlock {
  CopiedAxis rows, cols;
  int64_t images;
  int64_t channels, blocks;  // in a block; number of blocks

  int64_t row_size() const { return cols.count * channels; }
  int64_t image_size() const { return rows.count * row_size(); }
  int64_t block_size() const { return images * image_size(); }
  int64_t size() const { return blocks * block_size(); }
};

// Copies what output rows from `first` on of some images meet of channel blocks [begin, end), pixel
// by pixel: x is read in the order in which it lies in memory. Channels past the last one are left
// as they are; no row of the weights reads them.
void copy_block(const CopiedBlock& copy, const Conv2dShape& s, const float* x, int64_t images,
                int64_t first, int64_t begin, int64_t end, float* to) {
  if (copy.blocks == 1 && copy.rows.shared && copy.cols.shared) {  // rows of pixels as they lie
    for (int64_t image = 0; image < images; ++image) {
      copy_padded(s, x + image * s.h * s.w * s.c, copy.rows.source(0, first),
                  copy.cols.source(0, 0), copy.rows.count, copy.cols.count,
                  to + image * copy.image_size());
    }
    return;
  }
  const int64_t whole = min(s.c / copied_channels, end) * copied_channels;
  const int64_t last = min(s.c, end * copied_channels);
  const int64_t block_size = copy.block_size();
  for (int64_t line = 0; line < images * copy.rows.count; ++line) {
    const int64_t image = line / copy.rows.count;
    const int64_t ih = copy.rows.source(line % copy.rows.count, first);
    const float* row = ih < 0 || ih >= s.h ? nullptr : x + (image * s.h + ih) * s.w * s.c;
    for (int64_t j = 0; j < copy.cols.count; ++j, to += copy.channels) {
      const int64_t iw = copy.cols.source(j, 0);
      const bool inside = row != nullptr && iw >= 0 && iw < s.w;
      const float* from = inside ? row + iw * s.c : nullptr;
      float* block = to + begin * block_size;
      int64_t c = begin * copied_channels;
      for (; c < whole; c += copied_channels, block += block_size) {
        for (int64_t k = 0; k < copied_channels; k += lanes) {
          store(block + k, inside ? load(from + c + k) : zero());
        }
      }
      for (; c < last; ++c, ++block) *block = inside ? from[c] : 0.0f;
    }
  }
}

// Copies one panel of dy, [pixels][stride] in memory, to [pixels][Q * lanes], with ReLU's mask
// where there is one, and adds it to bias, if that is not null.
template <int Q>
void pack_gradient(const float* dy, const float* y, int64_t stride, int64_t pixels,
                   int64_t features, float* packed, float* bias) {
  const int64_t last = min(features - (Q - 1) * lanes, lanes);  // features in the last vector
  vec sum[Q];
  for (int q = 0; q < Q; ++q) sum[q] = zero();
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
  if (bias == nullptr) return;
  for (int q = 0; q < Q; ++q) {
    const int64_t count = q < Q - 1 ? lanes : last;
    store_part(bias + q * lanes, add(load_part(bias + q * lanes, count), sum[q]), count);
  }
}
void pack_gradient(const float* dy, const float* y, int64_t stride, int64_t pixels, int64_t vectors,
                   int64_t features, float* packed, float* bias) {
  const auto pack = vectors == 2 ? pack_gradient<2> : pack_gradient<1>;
  pack(dy, y, stride, pixels, features, packed, bias);
}

// to[i][f] = x[i] * dy[f] for `rows` rows that lie one behind another. A row's last vector is
// a whole one, whose surplus the next row overwrites, if there is one. x may be null, for zeros; of
// dy there are some more floats than features.
void scale_rows(int64_t rows, int64_t features, const float* x, const float* dy, float* to) {
  const float* const end = to + rows * features;
  for (int64_t row = 0; row < rows; ++row, to += features) {
    const float value = x != nullptr ? x[row] : 0.0f;
    int64_t f = 0;
    for (; f < features && to + f + lanes <= end; f += lanes) {
      store(to + f, mul(broadcast(value), load(dy + f)));
    }
    for (; f < features; ++f) to[f] = value * dy[f];
  }
}

// The whole gradient of a batch with a single output pixel: every row of dw is dy, scaled.
void one_pixel_weights(const Conv2dShape& s, Activation activation, const float* dy, const float* y,
                       const float* x, float* dw, float* db) {
  Scratch memory;
  const int64_t masked_at = memory.reserve<float>(s.oc + lanes);
  memory.allocate();
  float* const masked = memory.at<float>(masked_at);
  if (activation == Activation::relu) {
    masked_copy(dy, y, masked, s.oc);
  } else {
    copy(masked, dy, s.oc);
  }
  clear(masked + s.oc, lanes);
  if (db != nullptr) copy(db, masked, s.oc);
  const int64_t group_c = s.c / s.groups, features = s.oc / s.groups;
  parallel_ranges(s.kh * s.kw * group_c, max(1, 16 * 1024 / s.oc), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin, next = begin; row < end; row = next) {
      const int64_t tap = row / group_c, channel = row % group_c;
      next = min(end, (tap + 1) * group_c);
      const int64_t ih = tap / s.kw * s.dilation_h - s.pad_top;
      const int64_t iw = tap % s.kw * s.dilation_w - s.pad_left;
      const bool inside = ih >= 0 && ih < s.h && iw >= 0 && iw < s.w;
      const float* const pixel = inside ? x + (ih * s.w + iw) * s.c : nullptr;
      if (s.groups == 1) {
        scale_rows(next - row, features, behind(pixel, channel), masked, dw + row * s.oc);
        continue;
      }
      for (int64_t i = row; i < next; ++i) {
        for (int64_t group = 0; group < s.groups; ++group) {
          const int64_t c = group * group_c + channel + i - row;
          scale_rows(1, features, behind(pixel, c), masked + group * features,
                     dw + i * s.oc + group * features);
        }
      }
    }
  });
}

// Few features would leave lanes of their vectors empty, or the sums of few pixels be written far
// apart. In a dense layer, or a 1x1 convolution, vectors may run along the channels instead:
// dw^T = dy^T x. Not of so many pixels that their sum should be cut.
bool few_features(const Conv2dShape& s) {
  const bool dense = s.kh == 1 && s.kw == 1 && s.stride_h == 1 && s.stride_w == 1 &&
                     s.pad_top == 0 && s.pad_left == 0 && s.oh == s.h && s.ow == s.w;
  constexpr int64_t most_features = 32, most_pixels = 2048, most_gradients = 28 * 1024;
  const int64_t pixels = s.n * s.h * s.w;
  return dense && s.groups == 1 && s.c >= 2 * panel_lanes && s.oc <= most_features &&
         pixels <= most_pixels && pixels * s.oc <= most_gradients;
}

void few_features_weights(const Conv2dShape& s, Activation activation, const float* dy,
                          const float* y, const float* x, float* dw, float* db) {
  const int64_t pixels = s.n * s.h * s.w, size = pixels * s.oc;
  const int64_t panels = panel_count(s.c);
  Scratch memory;
  const int64_t masked_at = memory.reserve<float>(activation == Activation::relu ? size : 0);
  memory.allocate();
  if (activation == Activation::relu) {
    float* const masked = memory.at<float>(masked_at);
    parallel_ranges(size, 16 * 1024, [&](int64_t begin, int64_t end) {
      masked_copy(dy + begin, y + begin, masked + begin, end - begin);
    });
    dy = masked;
  }
  parallel_for(num_threads(), panels + 1, [&](int64_t panel, int) {
    if (panel == panels) {  // the bias is one more item
      if (db == nullptr) return;
      clear(db, s.oc);
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        for (int64_t f = 0; f < s.oc; ++f) db[f] += dy[pixel * s.oc + f];
      }
      return;
    }
    // The last one begins where it is whole; what the one before it has done is not written again.
    const int64_t first = min(panel * panel_lanes, s.c - panel_lanes);
    const int64_t done = panel * panel_lanes - first;
    float sums[tile_rows[2] * panel_lanes];
    TransposedTile tile{};
    tile.a_row = s.oc;
    tile.b = x + first;
    tile.b_row = s.c;
    tile.depth = pixels;
    tile.c = sums;
    tile.overwrite = true;
    for_parts(s.oc, ceil_div(s.oc, tile_rows[2]), [&](int64_t feature, int64_t features) {
      tile.a = dy + feature;
      run_tile(tile, 2, features);
      transpose(sums + done, panel_lanes, features, panel_lanes - done,
                dw + (first + done) * s.oc + feature, s.oc);
    });
  });
}

}  // namespace

void conv2d_direct_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                                    const float* y, const float* x, float* dw, float* db) {
  const int64_t group_c = s.c / s.groups, weights = s.kh * s.kw * group_c * s.oc;
  if (s.n == 0) {
    clear(dw, weights);
    if (db != nullptr) clear(db, s.oc);
    return;
  }
  if (s.n * s.oh * s.ow == 1) {
    one_pixel_weights(s, activation, dy, y, x, dw, db);
    return;
  }
  if (first_fits(s)) {
    conv2d_first_backward_weights(s, activation, dy, y, x, dw, db);
    return;
  }
  const bool last = last_fits(s) && last_pays_weights(s);
  constexpr int64_t emptier_tiles = 2;  // of so many features, than conv2d_last's
  if (few_features(s) && !(last && s.oc <= emptier_tiles)) {
    few_features_weights(s, activation, dy, y, x, dw, db);
    return;
  }
  if (last) {
    conv2d_last_backward_weights(s, activation, dy, y, x, dw, db);
    return;
  }
  const WeightsCut cut(s);
  const int64_t channels = min(s.c, copied_channels);
  const CopiedBlock copied{CopiedAxis(s.kh, cut.block_rows, s.stride_h, s.dilation_h, s.pad_top),
                           CopiedAxis(s.kw, s.ow, s.stride_w, s.dilation_w, s.pad_left),
                           cut.block_images, channels, ceil_div(s.c, channels)};
  // Where the chunks are too few to go round, their panels or rows are dealt out as well: the parts
  // of the panels copy all of x, those of the rows all of dy.
  constexpr int64_t splits_per_thread = 2;
  const int threads = num_threads();
  const int64_t wanted = ceil_div(splits_per_thread * threads, cut.chunks);
  const int64_t row_tiles = ceil_div(cut.rows, tile_rows[cut.vectors(0)]);  // of a group
  int64_t panel_parts, row_parts;
  if (copied.size() > cut.block_size() * s.oc) {
    row_parts = min(row_tiles, wanted);
    panel_parts = min(cut.panels, ceil_div(wanted, row_parts));
  } else {
    panel_parts = min(cut.panels, wanted);
    row_parts = min(row_tiles, ceil_div(wanted, panel_parts));
  }
  const int64_t item_panels = ceil_div(cut.panels, panel_parts);
  const bool along_rows = cut.along_rows();

  // The first chunk's sums go to dw, the others' to memory of the same layout.
  const int64_t x_size = copied.size();
  const int64_t panel_size = cut.block_size() * panel_lanes;
  const int64_t dy_size = (along_rows ? item_panels : 1) * panel_size;
  Scratch memory;
  const int64_t partials_at = memory.reserve<float>((cut.chunks - 1) * weights);
  const int64_t bias_at = memory.reserve<float>(cut.chunks * s.oc);
  const int64_t dw_rows_at = memory.reserve<int64_t>(s.groups * cut.rows);
  const int64_t offsets_at = memory.reserve<int64_t>(s.groups * cut.rows);
  const int64_t has_copy_at = memory.reserve<int64_t>(threads);
  memory.allocate();
  float* const partials = memory.at<float>(partials_at);
  float* const biases = memory.at<float>(bias_at);
  clear(biases, cut.chunks * s.oc);

  // The rows of the weights in the order in which tiles take them: a block of channels, then its
  // taps, so that the block's copy stays in the first-level cache for all of them. For each row,
  // where it finds its first pixel in the copy of x and where it begins in dw.
  int64_t* const offsets = memory.at<int64_t>(offsets_at);
  int64_t* const dw_rows = memory.at<int64_t>(dw_rows_at);
  for (int64_t group = 0, i = 0; group < s.groups; ++group) {
    for (int64_t c0 = 0; c0 < group_c; c0 += copied_channels) {
      for (int64_t kh = 0; kh < s.kh; ++kh) {
        for (int64_t kw = 0; kw < s.kw; ++kw) {
          for (int64_t ic = c0; ic < min(c0 + copied_channels, group_c); ++ic, ++i) {
            const int64_t c = group * group_c + ic;
            offsets[i] = c / copied.channels * copied.block_size() + c % copied.channels +
                         kh * copied.rows.tap * copied.row_size() +
                         kw * copied.cols.tap * copied.channels;
            dw_rows[i] = ((kh * s.kw + kw) * group_c + ic) * s.oc + group * cut.features;
          }
        }
      }
    }
  }

  // The chunk and row part of which a worker has copied x, all in one block, for the next item.
  int64_t* const has_copy = memory.at<int64_t>(has_copy_at);
  for (int worker = 0; worker < threads; ++worker) has_copy[worker] = -1;

  parallel_for(threads, cut.chunks * panel_parts * row_parts, [&](int64_t item, int worker) {
    const int64_t row_part = item % row_parts, panel_part = item / row_parts % panel_parts;
    const int64_t chunk = item / row_parts / panel_parts;
    const int64_t part = chunk * row_parts + row_part;
    const int64_t panel_begin = part_begin(cut.panels, panel_parts, panel_part);
    const int64_t panel_end = part_begin(cut.panels, panel_parts, panel_part + 1);
    const int64_t tile_begin = part_begin(row_tiles, row_parts, row_part);
    const int64_t tile_end = part_begin(row_tiles, row_parts, row_part + 1);
    const int64_t block_begin = part_begin(cut.blocks, cut.chunks, chunk);
    const int64_t block_end = part_begin(cut.blocks, cut.chunks, chunk + 1);
    float* const sums = chunk == 0 ? dw : partials + (chunk - 1) * weights;
    float* const bias = biases + chunk * s.oc;
    Scratch own;
    const int64_t x_at = own.reserve<float>(x_size), dy_at = own.reserve<float>(dy_size);
    own.allocate(ScratchUse::worker);
    float* const x_copy = own.at<float>(x_at);
    float* const dy_copy = own.at<float>(dy_at);

    // The channels that these rows meet, from the first group's first to the last group's last.
    const auto channel_of = [&](int64_t row) {
      return row / (s.kh * s.kw * copied_channels) * copied_channels;
    };
    const int64_t last_row = part_begin(cut.rows, row_tiles, tile_end) - 1;
    const int64_t first_channel = panel_begin / cut.group_panels * group_c +
                                  channel_of(part_begin(cut.rows, row_tiles, tile_begin));
    const int64_t last_channel = (panel_end - 1) / cut.group_panels * group_c +
                                 min(group_c, channel_of(last_row) + copied_channels) - 1;

    for (int64_t block = block_begin; block < block_end; ++block) {
      const int64_t image = block / cut.image_blocks * cut.block_images;
      const int64_t images = min(cut.block_images, s.n - image);
      const int64_t row = block % cut.image_blocks * cut.block_rows;
      const int64_t rows = min(cut.block_rows, s.oh - row);
      if (has_copy[worker] != part) {
        copy_block(copied, s, x + image * s.h * s.w * s.c, images, row, first_channel / channels,
                   last_channel / channels + 1, x_copy);
        if (s.groups == 1 && block_end - block_begin == 1) has_copy[worker] = part;
      }

      WeightsTile tile{};
      tile.x_pixel = copied.cols.output * copied.channels;
      tile.x_row = copied.rows.output * copied.row_size();
      tile.x_image = copied.image_size();
      tile.images = images;
      tile.rows = rows;
      tile.pixels = s.ow;
      if (tile.x_row == tile.pixels * tile.x_pixel) {  // one run of pixels: no need to stop
        tile.pixels *= tile.rows;
        tile.rows = 1;
        if (tile.x_image == tile.pixels * tile.x_pixel) {
          tile.pixels *= tile.images;
          tile.images = 1;
        }
      }
      tile.overwrite = block == block_begin;
      tile.dy_panel = panel_size;

      // Whole images lie behind one another; rows of one image, too.
      const int64_t at = (image * s.oh + row) * s.ow * s.oc;
      const auto pack = [&](int64_t p, float* to, bool add_bias) {
        const int64_t first = p % cut.group_panels * panel_lanes;
        const int64_t feature = p / cut.group_panels * cut.features + first;
        const float* const mask = activation == Activation::relu ? y + at + feature : nullptr;
        pack_gradient(dy + at + feature, mask, s.oc, images * rows * s.ow, cut.vectors(p),
                      cut.features - first, to, add_bias ? bias + feature : nullptr);
      };
      const auto run_row_tile = [&](int64_t p, int64_t count, int64_t row_tile,
                                    const float* packed) {
        const int64_t group = p / cut.group_panels;
        const int64_t first = p % cut.group_panels * panel_lanes;
        const int64_t r0 = part_begin(cut.rows, row_tiles, row_tile);
        const int64_t r1 = part_begin(cut.rows, row_tiles, row_tile + 1);
        for (int64_t r = r0; r < r1; ++r) {
          tile.x[r - r0] = x_copy + offsets[group * cut.rows + r];
          tile.dw[r - r0] = sums + dw_rows[group * cut.rows + r] + first;
        }
        tile.dy = packed;
        tile.panels = count;
        tile.features = cut.features - first;
        run_tile(tile, cut.vectors(p), r1 - r0);
      };
      // Of the parts that share a panel, the one with its first row adds up the bias.
      const bool add_bias = row_part == 0;
      if (along_rows) {
        for (int64_t p = panel_begin; p < panel_end; ++p) {
          pack(p, dy_copy + (p - panel_begin) * panel_size, add_bias);
        }
        // So many panels at a time stay in the first-level cache, beside x and what is stored.
        constexpr int64_t kept_bytes = 16 * 1024;
        const int64_t kept = max(1, kept_bytes / (float_bytes * panel_size));
        for (int64_t begin = panel_begin; begin < panel_end; begin += kept) {
          const int64_t end = min(begin + kept, panel_end);
          for (int64_t t = tile_begin; t < tile_end; ++t) {
            for (int64_t p = begin, count; p < end; p += count) {
              count = cut.run(p, end);
              run_row_tile(p, count, t, dy_copy + (p - panel_begin) * panel_size);
            }
          }
        }
      } else {
        for (int64_t p = panel_begin; p < panel_end; ++p) {
          pack(p, dy_copy, add_bias);
          for (int64_t t = tile_begin; t < tile_end; ++t) run_row_tile(p, 1, t, dy_copy);
        }
      }
    }
  });

  // Add the chunks up, in their order.
  if (cut.chunks > 1) {
    parallel_ranges(weights, 4096, [&](int64_t begin, int64_t end) {
      add_arrays(dw, partials, cut.chunks - 1, weights, begin, end);
    });
    add_arrays(biases, biases + s.oc, cut.chunks - 1, s.oc, 0, s.oc);
  }
  if (db != nullptr) copy(db, biases, s.oc);
}

}  // namespace pyconv::cpu::PYCONV_ISA
