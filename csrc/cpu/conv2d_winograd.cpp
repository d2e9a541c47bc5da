// 3x3 convolution by Winograd's algorithms F(4x4, 3x3) and F(6x6, 3x3), forward and backward.
//
// A 4x4 tile of the output takes 16 * 9 = 144 multiplications a pair of channels if computed
// directly. Seen as a product of polynomials, evaluated at the points 0, 1, -1, 2, -2 and infinity
// along either axis, it takes 6 * 6 = 36; a 6x6 tile, with the points 1/2 and -1/2 as well, 64
// instead of 324:
//
//   Y = A^T [ (G w G^T) * (B^T X B) ] A       * element by element
//
// where X is the 6x6 or 8x8 patch of x under the tile. Over all channels, each of the 36 or 64
// elements, called planes, is a product of matrices, [tiles][c] x [c][oc], and there the time goes.
// Which tile is better depends on how many of its outputs exist. The passes:
//
//   forward   V = B^T X B, U = G w G^T, P = V U, Y = A^T P A, then bias and ReLU, or bias, ReLU
//             and 2x2 max pooling, of which a tile holds four or nine windows
//   data      the forward pass on dy, with the kernel flipped and its channels exchanged
//   weights   the forward pass transposed: dw = G^T [ V^T (A dY A^T) ] G, summed over all tiles
//
// The transforms' factors make rounding errors larger than the direct algorithm's, by a factor that
// docs/correctness.md derives; and a NaN or infinity reaches the whole tile, not only the outputs
// that use it. math_mode "direct" does without.
//
// Deterministic: an output is summed in one order whatever the cut; weight gradients are summed
// over stages of tiles whose size depends on the shape only.
//
// Source: A. Lavin, S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
#include <math.h>

#include "conv2d.hpp"
#include "tiles.hpp"
#include "winograd_transforms.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// M is the side of a tile of outputs, 4 or 6 throughout.
template <int M>
constexpr int side = M + 3 - 1;  // of its patch, and of everything transformed
template <int M>
constexpr int planes = side<M> * side<M>;  // products of matrices

// ---------------------------------------------------------------------------------------------
// Tiles and planes

// The tiles of a batch, numbered through, row by row, image after image.
template <int M>
struct Tiles {
  int64_t rows, cols, count;  // in an image, in the batch

  Tiles(int64_t n, int64_t oh, int64_t ow)
      : rows(ceil_div(oh, M)), cols(ceil_div(ow, M)), count(n * rows * cols) {}
};

template <int M>
struct TilePosition {
  int64_t image, row, col;  // of the tile's first output

  TilePosition(const Tiles<M>& tiles, int64_t index)
      : image(index / (tiles.rows * tiles.cols)),
        row(index / tiles.cols % tiles.rows * M),
        col(index % tiles.cols * M) {}
  void advance(const Tiles<M>& tiles) {
    col += M;
    if (col < tiles.cols * M) return;
    col = 0;
    row += M;
    if (row < tiles.rows * M) return;
    row = 0;
    ++image;
  }
};

// Planes lie one cache line further apart than their size: at a power of two, the elements that a
// transform writes would compete for a few sets of the cache.
inline int64_t plane_step(int64_t size) {
  return ceil_div(size, cache_line) * cache_line + cache_line;
}

// Images in NHWC, of which patches are read; pixels outside are zero, and so are those where a mask
// is not positive.
struct Source {
  const float* data;
  const float* mask;  // null: everything counts
  int64_t h, w, c;
};

// The transforms of a square of pixels, all inside the image, for one vector of channels, which may
// be the first one of a cache line. A function of its own: within a larger one the compiler runs
// out of registers, and it takes half as long again.
template <bool masked, class Transform>
__attribute__((noinline)) void transform_inside(Transform transform, const float* data,
                                                const float* mask, bool new_line, int64_t line,
                                                int64_t pixel, float* to, int64_t step) {
  constexpr int In = Transform::in;
  // The rows that the tiles below read first: without this, most of the time is spent waiting for
  // them.
  if (new_line) {
    constexpr int tile = In == Transform::out ? In - 2 : In;  // its side
#pragma GCC unroll 8
    for (int i = 0; i < tile; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < tile; ++j) {
        __builtin_prefetch(data + (In + i) * line + (j + 1) * pixel);
      }
    }
  }
  const auto read_row = [=](int i, vec(&values)[In]) {
#pragma GCC unroll 8
    for (int j = 0; j < In; ++j) {
      const int64_t at = i * line + j * pixel;
      const vec v = load(data + at);
      values[j] = masked ? where_positive(load(mask + at), v) : v;
    }
  };
  transform_square(transform, read_row, to, step);
}

// The transforms of the square of pixels whose first one is (row, col) of an image, for channels
// [begin, end). place(c) is where element (0, 0) of the vector of channels from c on goes; the
// others follow, each a step further.
template <bool masked, class Transform, class Place>
void transform_pixels(Transform transform, const Source& source, int64_t image, int64_t row,
                      int64_t col, const Place& place, int64_t step, int64_t begin, int64_t end) {
  constexpr int In = Transform::in;
  const int64_t pixel = source.c, line = source.w * pixel;
  const int64_t origin = ((image * source.h + row) * source.w + col) * pixel;
  const float* const data = source.data + origin;
  const float* const mask = masked ? source.mask + origin : nullptr;
  const bool inside = row >= 0 && col >= 0 && row + In <= source.h && col + In <= source.w;
  end = min(end, pixel);
  int64_t c = begin;
  if (inside) {
    for (; c + lanes <= end; c += lanes) {
      transform_inside<masked>(transform, data + c, masked ? mask + c : nullptr,
                               c % cache_line == 0, line, pixel, place(c), step);
    }
  }
  const int64_t left = max(0, -col), right = min(In, source.w - col);
  for (; c < end; c += lanes) {
    const int64_t channels = min(lanes, end - c);
    const auto read_row = [=](int i, vec(&values)[In]) {
      const bool row_inside = row + i >= 0 && row + i < source.h;
#pragma GCC unroll 8
      for (int j = 0; j < In; ++j) {
        values[j] = zero();
        if (!row_inside || j < left || j >= right) continue;
        const int64_t at = i * line + j * pixel + c;
        const vec v = load_part(data + at, channels);
        values[j] = masked ? where_positive(load_part(mask + at, channels), v) : v;
      }
    };
    transform_square(transform, read_row, place(c), step);
  }
}

template <class Transform, class Place>
void transform_patch(Transform transform, const Source& source, int64_t image, int64_t row,
                     int64_t col, const Place& place, int64_t step, int64_t begin, int64_t end) {
  if (source.mask != nullptr) {
    transform_pixels<true>(transform, source, image, row, col, place, step, begin, end);
  } else {
    transform_pixels<false>(transform, source, image, row, col, place, step, begin, end);
  }
}

// ---------------------------------------------------------------------------------------------
// Forward and data gradient

struct Convolution {
  Source source;
  int64_t n, pad_top, pad_left;
  // What is computed of the result, whose rows are result_w pixels long.
  int64_t rows, cols, result_h, result_w, features;
  const float* bias;  // or null
  float least;        // results below it become it: 0 for ReLU, else -infinity
  float* result;
  bool pooled;      // ReLU and 2x2 pooling follow, and the result is the pooled one
  uint8_t* winner;  // of pooling, or null
  // Where the weights have element (tap, k, f).
  const float* weights;
  int64_t weight_tap, weight_k, weight_f;
};

// Rows of a panel of the weights that are transformed together.
constexpr int64_t rows_per_item = 16;

// U = G w G^T of the rows [begin, end) of a panel: [plane][panel][k][lanes of the panel].
template <int M>
void transform_weights(const Convolution& conv, int64_t panel, int64_t begin, int64_t end,
                       int64_t step, float* u) {
  const int64_t vectors = panel_vectors(conv.features, panel), width = vectors * lanes;
  const int64_t depth = conv.source.c, first = panel * panel_lanes;
  const int64_t features = min(width, conv.features - first);
  const float* w = conv.weights + begin * conv.weight_k + first * conv.weight_f;
  int64_t tap = conv.weight_tap, row = conv.weight_k;
  float transposed[9 * rows_per_item * panel_lanes];
  if (conv.weight_f != 1) {  // for the data gradient: k is what lies contiguous
    for (int64_t t = 0; t < 9; ++t) {
      transpose(w + t * tap, conv.weight_f, features, end - begin,
                transposed + t * rows_per_item * panel_lanes, panel_lanes);
    }
    w = transposed, tap = rows_per_item * panel_lanes, row = panel_lanes;
  }
  float* to = u + first * depth + begin * width;
  for (int64_t k = begin; k < end; ++k, w += row, to += width) {
    for (int64_t q = 0; q < vectors; ++q) {
      const int64_t count = min(lanes, features - q * lanes);
      const auto read_row = [&](int i, vec(&taps)[3]) {
        for (int j = 0; j < 3; ++j) taps[j] = load_part(w + (i * 3 + j) * tap + q * lanes, count);
      };
      transform_square(TapsTransform<M>(), read_row, to + q * lanes, step);
    }
  }
}

// Y = A^T P A of one tile and the vectors of features [begin, end), and what follows.
template <int M>
void finish_tile(const Convolution& conv, const TilePosition<M>& tile, int64_t begin, int64_t end,
                 const float* m, int64_t step) {
  const int64_t rows = min(M, conv.rows - tile.row);
  const int64_t cols = min(M, conv.cols - tile.col);
  const int shift = conv.pooled ? 1 : 0;
  const int64_t at =
      ((tile.image * conv.result_h + (tile.row >> shift)) * conv.result_w + (tile.col >> shift)) *
      conv.features;
  for (int64_t f = begin; f < end; f += lanes) {
    const int64_t count = min(lanes, conv.features - f);
    const vec bias = conv.bias == nullptr ? zero() : load_part(conv.bias + f, count);
    const float* const from = m + f - begin;
    const auto read_row = [=](int i, vec(&values)[side<M>]) {
#pragma GCC unroll 8
      for (int j = 0; j < side<M>; ++j) values[j] = load(from + (i * side<M> + j) * step);
    };
    float y[M * M * lanes];
    transform_square(OutputTransform<M>(), read_row, y, lanes);
    const auto value = [&](int i, int j) { return add(load(y + (i * M + j) * lanes), bias); };
    if (conv.pooled) {
      for (int i = 0; i < rows / 2; ++i) {
        for (int j = 0; j < cols / 2; ++j) {
          const int64_t to = at + (i * conv.result_w + j) * conv.features + f;
          pool_window(value(2 * i, 2 * j), value(2 * i, 2 * j + 1), value(2 * i + 1, 2 * j),
                      value(2 * i + 1, 2 * j + 1), count, conv.result + to,
                      behind(conv.winner, to));
        }
      }
      continue;
    }
    const vec least = broadcast(conv.least);
    for (int i = 0; i < rows; ++i) {
      float* to = conv.result + at + i * conv.result_w * conv.features + f;
      for (int j = 0; j < cols; ++j, to += conv.features) {
        store_part(to, at_least(least, value(i, j)), count);
      }
    }
  }
}

// Tiles in a block, so that reading all of U once a block costs no more than reading and writing
// what the block transforms.
int64_t block_tiles(int64_t c, int64_t oc) {
  constexpr int64_t least = 2 * max_tile_rows, most = 192;
  return max(least, min(most, ceil_div(c * oc / (c + oc), max_tile_rows) * max_tile_rows));
}

// Up to so large a U every worker makes its own: fetching what another core has just written takes
// longer than transforming it again.
constexpr int64_t own_weights_bytes = 5 << 18;

// What should stay in a third-level cache.
constexpr int64_t cached_bytes = 16 << 20;

// Costs are in multiply-adds of the direct algorithm that take as long (measured, see
// docs/performance.md). Of transforming a patch, for each channel:
template <int M>
constexpr int64_t input_cost = M == 4 ? 200 : 440;
// Of fetching so many weights that lie ready, while so many multiply-adds are made: from a
// third-level cache most of it is hidden behind them. Wider vectors multiply faster, but do not
// fetch faster.
int64_t fetch_cost(int64_t weights, int64_t products) {
  const bool cached = weights * float_bytes <= cached_bytes;
  const int64_t cost = weights * lanes * (cached ? 2 : 5) / 4;
  return cost - (cached ? min(products, cost * 7 / 10) : 0);
}

template <int M>
void run(const Convolution& conv) {
  const Tiles<M> tiles(conv.n, conv.rows, conv.cols);
  const int64_t depth = conv.source.c, depth_row = padded_features(depth);
  const int64_t panels = panel_count(conv.features), width = padded_features(conv.features);
  const int threads = num_threads();

  const int64_t u_step = plane_step(depth * width), u_size = planes<M> * u_step;
  KeptWeights* const kept = kept_weights();
  const bool own_weights = kept == nullptr && u_size * float_bytes <= own_weights_bytes;

  // An item is a block of tiles and a part of the panels. Small batches are cut as evenly as can
  // be, first into smaller blocks, then by panels, which repeats the transforms of the input but
  // lets every thread fetch its part of U only, then into blocks that hardly fill a product.
  constexpr int64_t least_tiles = 4, enough_tiles = max_tile_rows / 2;
  const int64_t weights = planes<M> * depth * conv.features;
  const bool fetching_costs_more = !own_weights && fetch_cost(weights, tiles.count * weights) >
                                                       tiles.count * input_cost<M> * depth;
  int64_t blocks = ceil_div(tiles.count, block_tiles(depth, conv.features)), panel_parts = 1;
  if (blocks < items_per_thread * threads) {
    if (tiles.count >= enough_tiles * threads && !fetching_costs_more) {
      blocks = ceil_div(blocks, threads) * threads;
    } else {
      panel_parts = min(panels, ceil_div(threads, blocks));
      blocks = max(blocks, min(ceil_div(threads, panel_parts), tiles.count / least_tiles));
    }
  }
  const int64_t block = ceil_div(tiles.count, blocks);
  const int64_t part_width = min(width, ceil_div(panels, panel_parts) * panel_lanes);

  const int64_t v_step = plane_step(block * depth_row), m_step = plane_step(block * part_width);
  Scratch memory;
  const int64_t shared_at = memory.reserve<float>(own_weights || kept != nullptr ? 0 : u_size);
  const int64_t ready_at = memory.reserve<bool>(threads);
  memory.allocate();

  const int64_t row_parts = ceil_div(depth, rows_per_item);
  const auto transform_part = [&](int64_t item, float* u) {
    const int64_t begin = item % row_parts * rows_per_item;
    transform_weights<M>(conv, item / row_parts, begin, min(depth, begin + rows_per_item), u_step,
                         u);
  };
  const auto transform_all = [&](float* u) {
    parallel_for(threads, panels * row_parts, [&](int64_t item, int) { transform_part(item, u); });
  };
  const float* shared = memory.at<float>(shared_at);
  if (kept != nullptr) {
    const auto layout = M == 4 ? KeptWeights::winograd4 : KeptWeights::winograd6;
    shared = get_kept(*kept, layout, u_size, transform_all);
  } else if (!own_weights) {
    transform_all(memory.at<float>(shared_at));
  }
  bool* const ready = memory.at<bool>(ready_at);
  for (int worker = 0; worker < threads; ++worker) ready[worker] = !own_weights;

  parallel_for(threads, blocks * panel_parts, [&](int64_t item, int worker) {
    const int64_t part = item % panel_parts;
    const int64_t first = part_begin(tiles.count, blocks, item / panel_parts);
    const int64_t count = part_begin(tiles.count, blocks, item / panel_parts + 1) - first;
    const int64_t panel_begin = part_begin(panels, panel_parts, part);
    const int64_t panel_end = part_begin(panels, panel_parts, part + 1);
    const int64_t f_begin = panel_begin * panel_lanes, f_end = min(panel_end * panel_lanes, width);
    Scratch own;
    const int64_t u_at = own.reserve<float>(own_weights ? u_size : 0);
    const int64_t v_at = own.reserve<float>(planes<M> * v_step);
    const int64_t m_at = own.reserve<float>(planes<M> * m_step);
    own.allocate(ScratchUse::worker);
    float* const own_u = own.at<float>(u_at);
    const float* const u = own_weights ? own_u : shared;
    float* const v = own.at<float>(v_at);
    float* const m = own.at<float>(m_at);
    if (!ready[worker]) {
      for (int64_t i = 0; i < panels * row_parts; ++i) transform_part(i, own_u);
      ready[worker] = true;
    }

    TilePosition<M> tile(tiles, first);
    for (int64_t t = 0; t < count; ++t, tile.advance(tiles)) {
      float* const to = v + t * depth_row;
      const auto place = [=](int64_t c) { return to + c; };
      const int64_t row = tile.row - conv.pad_top, col = tile.col - conv.pad_left;
      transform_patch(InputTransform<M>(), conv.source, tile.image, row, col, place, v_step, 0,
                      depth);
    }

    ProductTile product{};
    product.a_row = depth_row;
    product.depth = depth;
    product.c_row = f_end - f_begin;
    product.b_panel = panel_lanes * depth;
    product.b_next = u_step;
    for (int64_t plane = 0; plane < planes<M>; ++plane) {
      for (int64_t panel = panel_begin; panel < panel_end; panel += product.panels) {
        const int64_t whole = min(panel_end, conv.features / panel_lanes) - panel;
        product.panels = count <= few_rows ? max(1, whole) : 1;
        const int64_t vectors = panel_vectors(conv.features, panel);
        const int64_t row_tiles = ceil_div(count, tile_rows[vectors]);
        product.b = u + plane * u_step + panel * panel_lanes * depth;
        for_parts(count, row_tiles, [&](int64_t t, int64_t rows) {
          product.a = v + plane * v_step + t * depth_row;
          product.c = m + plane * m_step + t * product.c_row + panel * panel_lanes - f_begin;
          run_tile(product, vectors, rows);
        });
      }
    }

    tile = TilePosition<M>(tiles, first);
    for (int64_t t = 0; t < count; ++t, tile.advance(tiles)) {
      finish_tile<M>(conv, tile, f_begin, f_end, m + t * product.c_row, m_step);
    }
  });
}

// Multiplications a pair of channels that the direct algorithm does along an axis: taps in the
// padding are not among them.
int64_t direct_taps(int64_t in, int64_t out, int64_t pad) {
  int64_t taps = 0;
  for (int64_t k = 0; k < 3; ++k) taps += max(0, min(out, in + pad - k) - max(0, pad - k));
  return taps;
}

// What becomes of the weights: transformed anew, the same for the data gradient, found transformed,
// or what is computed.
enum class Weights { transformed, transposed, kept, gradient };

// What their transform costs for each plane and pair of channels: while every worker has its own,
// while they stay in a third-level cache, and beyond. Wider vectors multiply faster, but do not
// fetch faster.
int64_t weights_cost(Weights weights, int64_t bytes) {
  struct Costs {
    int64_t own, cached, beyond;
  };
  constexpr bool wide = lanes >= 16;
  const Costs costs = weights == Weights::gradient ? wide ? Costs{28, 28, 42} : Costs{40, 25, 45}
                      : wide                       ? Costs{10, 47, 140}
                      : weights == Weights::transposed ? Costs{20, 12, 34}
                                                       : Costs{14, 11, 20};
  return bytes <= own_weights_bytes ? costs.own
         : bytes <= cached_bytes    ? costs.cached
                                    : costs.beyond;
}

// What the passes cost. `rows` and `cols` are what is computed of every image. The larger tile's
// products are slower than their number says: there is more to be fetched for each.
template <int M>
int64_t cost(const Conv2dShape& s, int64_t n, int64_t rows, int64_t cols, Weights weights) {
  constexpr int64_t output_cost = M == 4 ? 160 : 400, product_cost = M == 4 ? 36 : 83;
  const int64_t pairs = planes<M> * s.c * s.oc;
  const int64_t tiles = n * ceil_div(rows, M) * ceil_div(cols, M);
  const int64_t products = tiles * product_cost * (s.c + 4) * s.oc;
  const int64_t transforms = tiles * (input_cost<M> * s.c + output_cost * s.oc);
  if (weights == Weights::kept) return products + transforms + fetch_cost(pairs, products);
  return products + transforms + pairs * weights_cost(weights, pairs * float_bytes);
}

// Images for which the algorithm is chosen.
int64_t images(const Conv2dShape& s) {
  const KeptWeights* const kept = kept_weights();
  return kept != nullptr ? kept->images : s.n;
}

// The side of the tiles with which Winograd's algorithm is fastest, or 0 if the direct one is,
// whose multiplications an image and pair of channels are `direct`.
int fastest(const Conv2dShape& s, int64_t rows, int64_t cols, int64_t direct, Weights weights) {
  if (weights != Weights::gradient && kept_weights() != nullptr) weights = Weights::kept;
  const int64_t n = images(s);
  if (!winograd_fits(s)) return 0;
  const MathMode mode = math_mode();
  if (mode == MathMode::winograd4) return 4;
  if (mode == MathMode::winograd6) return 6;
  if (mode != MathMode::fp32 || s.c < 8 || s.oc < 8) return 0;
  const int64_t cost4 = cost<4>(s, n, rows, cols, weights);
  const int64_t cost6 = cost<6>(s, n, rows, cols, weights);
  int64_t products = n * direct * s.c * s.oc;
  if (weights == Weights::kept) products += fetch_cost(9 * s.c * s.oc, products);
  if (min(cost4, cost6) >= products) return 0;
  return cost4 <= cost6 ? 4 : 6;
}
int64_t direct_cost(const Conv2dShape& s, int64_t rows, int64_t cols) {
  return direct_taps(s.h, min(rows, s.oh), s.pad_top) *
         direct_taps(s.w, min(cols, s.ow), s.pad_left);
}

}  // namespace

bool winograd_fits(const Conv2dShape& s) {
  return s.kh == 3 && s.kw == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
         s.dilation_w == 1 && s.groups == 1;
}
int winograd_side(const Conv2dShape& s, int64_t rows, int64_t cols) {
  Conv2dShape whole = s;
  whole.n = images(s);
  const int64_t direct = direct_pads(whole) ? 9 * rows * cols : direct_cost(s, rows, cols);
  return fastest(s, rows, cols, direct, Weights::transformed);
}
int winograd_side_backward_data(const Conv2dShape& s) {
  // Beyond two rows of padding the flipped kernel would need a negative one.
  if (s.pad_top > 2 || s.pad_left > 2) return 0;
  return fastest(s, s.h, s.w, direct_cost(s, s.oh, s.ow), Weights::transposed);
}
int winograd_side_backward_weights(const Conv2dShape& s) {
  // The direct one multiplies by padding, too.
  return fastest(s, s.oh, s.ow, 9 * s.oh * s.ow, Weights::gradient);
}

namespace {

Convolution forward(const Conv2dShape& s, const float* x, const float* w, const float* b,
                    float* y) {
  return {.source = {.data = x, .mask = nullptr, .h = s.h, .w = s.w, .c = s.c},
          .n = s.n,
          .pad_top = s.pad_top,
          .pad_left = s.pad_left,
          .rows = s.oh,
          .cols = s.ow,
          .result_h = s.oh,
          .result_w = s.ow,
          .features = s.oc,
          .bias = b,
          .least = -HUGE_VALF,
          .result = y,
          .pooled = false,
          .winner = nullptr,
          .weights = w,
          .weight_tap = s.c * s.oc,
          .weight_k = s.oc,
          .weight_f = 1};
}

void run(int tile_side, const Convolution& conv) {
  if (tile_side == 4) {
    run<4>(conv);
  } else {
    run<6>(conv);
  }
}

}  // namespace

void conv2d_winograd(int tile_side, const Conv2dShape& s, Activation activation, const float* x,
                     const float* w, const float* b, float* y) {
  if (s.n == 0) return;
  Convolution conv = forward(s, x, w, b, y);
  if (activation == Activation::relu) conv.least = 0.0f;
  run(tile_side, conv);
}

void conv2d_winograd_pool(int tile_side, const ConvPoolShape& p, const float* x, const float* w,
                          const float* b, float* y, uint8_t* winner) {
  if (p.conv.n == 0) return;
  Convolution conv = forward(p.conv, x, w, b, y);
  conv.rows = 2 * p.ph, conv.cols = 2 * p.pw;
  conv.result_h = p.ph, conv.result_w = p.pw;
  conv.pooled = true;
  conv.winner = winner;
  run(tile_side, conv);
}

void conv2d_winograd_backward_data(int tile_side, const Conv2dShape& s, Activation activation,
                                   const float* dy, const float* y, const float* w, float* dx) {
  if (s.n == 0) return;
  run(tile_side, {.source = {.data = dy,
                             .mask = activation == Activation::relu ? y : nullptr,
                             .h = s.oh,
                             .w = s.ow,
                             .c = s.oc},
                  .n = s.n,
                  .pad_top = 2 - s.pad_top,
                  .pad_left = 2 - s.pad_left,
                  .rows = s.h,
                  .cols = s.w,
                  .result_h = s.h,
                  .result_w = s.w,
                  .features = s.c,
                  .bias = nullptr,
                  .least = -HUGE_VALF,
                  .result = dx,
                  .pooled = false,
                  .winner = nullptr,
                  // The kernel flipped: its last tap first.
                  .weights = w + 8 * s.c * s.oc,
                  .weight_tap = -s.c * s.oc,
                  .weight_k = 1,
                  .weight_f = s.oc});
}

// ---------------------------------------------------------------------------------------------
// Weight gradient

namespace {

// A stage of tiles is transformed, then multiplied: V and the transformed dy of a thread's stage
// should stay in its second-level cache, but every sum must be worth loading and storing.
constexpr int64_t stage_bytes = 768 << 10, least_stage = 48;
// Every chunk of the batch has sums of its own; so many bytes all together. They are as many as a
// power of two, whatever the number of threads, among which three or thirteen would go badly.
constexpr int64_t max_chunks = 16, sums_bytes = 8 << 20;
// The plane of the point 1 along both axes, where the transformed dy is the sum of the tile's.
template <int M>
constexpr int64_t plane_of_sums = side<M> + 1;

template <int M>
void backward_weights(const Conv2dShape& s, Activation activation, const float* dy, const float* y,
                      const float* x, float* dw, float* db) {
  const Tiles<M> tiles(s.n, s.oh, s.ow);
  const Source x_source{.data = x, .mask = nullptr, .h = s.h, .w = s.w, .c = s.c};
  const Source dy_source{.data = dy,
                         .mask = activation == Activation::relu ? y : nullptr,
                         .h = s.oh,
                         .w = s.ow,
                         .c = s.oc};
  const int64_t oc = s.oc, panels = panel_count(oc), width = padded_features(oc);
  // An odd number of cache lines, so that a column of V meets all sets of the cache.
  const int64_t depth = (ceil_div(s.c, cache_line) | 1) * cache_line;
  const int threads = num_threads();

  const int64_t sum_step = plane_step(s.c * width);
  const int64_t most_chunks =
      min(sums_bytes / (planes<M> * sum_step * float_bytes), tiles.count / least_stage);
  int64_t chunks = 1;
  while (chunks < max_chunks && 2 * chunks <= most_chunks) chunks *= 2;
  // Where the chunks are too few to go round, their panels are dealt out as well, which repeats the
  // transforms of x.
  const int64_t parts = min(panels, ceil_div(threads, chunks));
  const int64_t part_width = min(width, ceil_div(panels, parts) * panel_lanes);
  const int64_t tile_bytes = planes<M> * (depth + width) * float_bytes;
  const int64_t stage =
      min(ceil_div(tiles.count, chunks), max(least_stage, stage_bytes / tile_bytes));

  // V: [plane][tile][channel]; the gradient: [plane][panel][tile][panel's lanes]; the sums:
  // [chunk][plane][panel][channel][panel's lanes].
  const int64_t v_step = plane_step(stage * depth), m_step = plane_step(stage * part_width);
  Scratch memory;
  const int64_t sums_at = memory.reserve<float>(chunks * planes<M> * sum_step);
  const int64_t bias_at = memory.reserve<float>(chunks * width);
  memory.allocate();
  float* const all_sums = memory.at<float>(sums_at);
  float* const all_bias = memory.at<float>(bias_at);
  clear(all_bias, chunks * width);
  if (tiles.count == 0) clear(all_sums, planes<M> * sum_step);

  parallel_for(threads, chunks * parts, [&](int64_t item, int) {
    const int64_t chunk = item / parts;
    const int64_t begin = part_begin(tiles.count, chunks, chunk);
    const int64_t end = part_begin(tiles.count, chunks, chunk + 1);
    const int64_t panel_begin = part_begin(panels, parts, item % parts);
    const int64_t panel_end = part_begin(panels, parts, item % parts + 1);
    const int64_t f_begin = panel_begin * panel_lanes, f_end = min(panel_end * panel_lanes, width);
    Scratch own;
    const int64_t v_at = own.reserve<float>(planes<M> * v_step);
    const int64_t m_at = own.reserve<float>(planes<M> * m_step);
    own.allocate(ScratchUse::worker);
    float* const v = own.at<float>(v_at);
    float* const m = own.at<float>(m_at);
    float* const sums = all_sums + chunk * planes<M> * sum_step;
    float* const bias = all_bias + chunk * width;

    for (int64_t first = begin; first < end; first += stage) {
      const int64_t count = min(stage, end - first);
      TilePosition<M> tile(tiles, first);
      for (int64_t t = 0; t < count; ++t, tile.advance(tiles)) {
        float* const v_tile = v + t * depth;
        transform_patch(
            InputTransform<M>(), x_source, tile.image, tile.row - s.pad_top, tile.col - s.pad_left,
            [=](int64_t c) { return v_tile + c; }, v_step, 0, s.c);
        const auto place = [=](int64_t f) {
          const int64_t panel = f / panel_lanes;
          return m + (panel * panel_lanes - f_begin) * count +
                 t * panel_vectors(oc, panel) * lanes + f % panel_lanes;
        };
        transform_patch(GradientTransform<M>(), dy_source, tile.image, tile.row, tile.col, place,
                        m_step, f_begin, f_end);
      }

      TransposedTile product{};
      product.a_row = depth;
      product.depth = count;
      product.overwrite = first == begin;
      for (int64_t plane = 0; plane < planes<M>; ++plane) {
        for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
          const int64_t vectors = panel_vectors(oc, panel);
          product.b_row = vectors * lanes;
          product.b = m + plane * m_step + (panel * panel_lanes - f_begin) * count;
          if (plane == plane_of_sums<M>) {
            for (int64_t q = 0; q < vectors; ++q) {
              float* const to = bias + panel * panel_lanes + q * lanes;
              vec sum = load(to);
              for (int64_t t = 0; t < count; ++t) {
                sum = add(sum, load(product.b + (t * vectors + q) * lanes));
              }
              store(to, sum);
            }
          }
          for_parts(s.c, ceil_div(s.c, tile_rows[vectors]), [&](int64_t c, int64_t rows) {
            product.a = v + plane * v_step + c;
            product.c = sums + plane * sum_step + panel * panel_lanes * s.c + c * vectors * lanes;
            run_tile(product, vectors, rows);
          });
        }
      }
    }
  });

  // Add the chunks up, in their order.
  const int64_t chunk_size = planes<M> * sum_step;
  parallel_ranges(chunk_size, 16 * 1024, [&](int64_t begin, int64_t end) {
    add_arrays(all_sums, all_sums + chunk_size, chunks - 1, chunk_size, begin, end);
  });
  parallel_for(threads, panels * s.c, [&](int64_t item, int) {
    const int64_t panel = item / s.c, c = item % s.c;
    const int64_t vectors = panel_vectors(s.oc, panel);
    for (int64_t q = 0; q < vectors; ++q) {
      const int64_t f = panel * panel_lanes + q * lanes;
      const float* const from = all_sums + panel * panel_lanes * s.c + (c * vectors + q) * lanes;
      const auto read_row = [&](int i, vec(&values)[side<M>]) {
        for (int j = 0; j < side<M>; ++j) values[j] = load(from + (i * side<M> + j) * sum_step);
      };
      float taps[9 * lanes];
      transform_square(TapsGradientTransform<M>(), read_row, taps, lanes);
      for (int64_t tap = 0; tap < 9; ++tap) {
        store_n(dw + (tap * s.c + c) * oc + f, load(taps + tap * lanes), min(lanes, oc - f));
      }
    }
  });
  add_arrays(all_bias, all_bias + width, chunks - 1, width, 0, oc);
  if (db != nullptr) copy(db, all_bias, oc);
}

}  // namespace

void conv2d_winograd_backward_weights(int tile_side, const Conv2dShape& s, Activation activation,
                                      const float* dy, const float* y, const float* x, float* dw,
                                      float* db) {
  if (tile_side == 4) {
    backward_weights<4>(s, activation, dy, y, x, dw, db);
  } else {
    backward_weights<6>(s, activation, dy, y, x, dw, db);
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
