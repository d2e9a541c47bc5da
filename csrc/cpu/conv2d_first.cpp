// Direct convolution of images with few channels: a network's first layer.
//
// With three channels the general algorithm (conv2d_direct.cpp) spends as long on finding where
// positions and taps begin as on multiplying. Here neighbouring positions are a number of floats
// apart that is known when this is compiled, so a tile of them has one address, and a row of the
// kernel is one run of kw * c floats. What is read is a band of the image, copied with its padding:
// it is small beside the result.
//
// Deterministic: every output is summed over the taps in their order, as in conv2d_direct.cpp.
#include <math.h>

#include "conv2d.hpp"
#include "tiles.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

template <int Step>
struct FirstTile {
  const float* x;  // under the first position; the next ones are a step further each
  int64_t line;    // from one row of the kernel to the next
  int64_t kernel_rows, depth;
  const float* w;  // panel: [kernel row][depth][Q * lanes]
  const float* bias;
  int64_t features;  // how many features of the panel exist
  float least;       // results below it become it
  float* y;
  int64_t y_pixel;
  int64_t stored;  // how many results of a position are written, whatever exists
};

template <int P, int Q, int Step>
__attribute__((noinline)) void compute(const FirstTile<Step>& tile) {
  vec sum[P][Q];
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q) {
    const int64_t count = min(tile.features - q * lanes, lanes);
    const vec bias = tile.bias != nullptr ? load_part(tile.bias + q * lanes, count) : zero();
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sum[p][q] = bias;
  }
  const float* w = tile.w;
  for (int64_t r = 0; r < tile.kernel_rows; ++r) {
    const float* x = tile.x + r * tile.line;
#pragma GCC unroll 3
    for (int64_t k = 0; k < tile.depth; ++k, ++x, w += Q * lanes) {
      // Else the compiler notices that neighbours share pixels, and keeps these on the stack.
      keep_in_register(x);
      add_products(
          sum, [&](int p) { return broadcast(x[p * Step]); },
          [&](int q) { return load(w + q * lanes); });
    }
  }
  const vec least = broadcast(tile.least);
  // Copies: for all the compiler knows, the tile could be what is written to.
  float* y = tile.y;
  const int64_t y_pixel = tile.y_pixel, stored = tile.stored;
  const bool whole = stored >= Q * lanes;
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p, y += y_pixel) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) {
      const int64_t count = whole ? lanes : min(stored - q * lanes, lanes);
      store_part(y + q * lanes, at_least(least, sum[p][q]), count);
    }
  }
}

template <int Step>
void run(const Conv2dShape& s, Activation activation, const float* x, const float* w,
         const float* b, float* y) {
  const int64_t panels = panel_count(s.oc), depth = s.kw * s.c;
  const int64_t weights_size = s.kh * depth * padded_features(s.oc);
  const int64_t width = padded_w(s);
  const int64_t reach = (s.kh - 1) * s.dilation_h + 1;  // rows that a row of outputs reads
  const int threads = num_threads();

  // A band's rows of outputs: what they read should stay in the first-level cache.
  constexpr int64_t band_bytes = 16 * 1024;
  const int64_t line_bytes = width * s.c * float_bytes;
  const int64_t most = max(1, (band_bytes / line_bytes - reach) / s.stride_h + 1);
  // Of a single image, every thread's part should be whole: the next layer reads it again.
  const int64_t wanted = s.n == 1 ? threads : ceil_div(items_per_thread * threads, s.n);
  const int64_t bands = min(s.oh, max(ceil_div(s.oh, most), wanted));
  const int64_t band_rows = (ceil_div(s.oh, bands) - 1) * s.stride_h + reach;

  const auto pack = [&](float* to) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t vectors = panel_vectors(s.oc, panel), first = panel * panel_lanes;
      for (int64_t row = 0; row < s.kh * depth; ++row) {
        for (int64_t f = first; f < first + vectors * lanes; f += lanes, to += lanes) {
          store(to, load_part(w + row * s.oc + f, min(lanes, s.oc - f)));
        }
      }
    }
  };
  Scratch memory;
  const float* const packed = kept_or_made(memory, KeptWeights::packed, weights_size, pack);

  parallel_for(threads, s.n * bands, [&](int64_t item, int) {
    const int64_t image = item / bands;
    const int64_t begin = part_begin(s.oh, bands, item % bands);
    const int64_t end = part_begin(s.oh, bands, item % bands + 1);
    Scratch own;
    const int64_t band_at = own.reserve<float>(band_rows * width * s.c);
    own.allocate(ScratchUse::worker);
    float* const band = own.at<float>(band_at);
    copy_padded(s, x + image * s.h * s.w * s.c, begin * s.stride_h - s.pad_top, -s.pad_left,
                (end - begin - 1) * s.stride_h + reach, width, band);

    FirstTile<Step> tile{};
    tile.line = s.dilation_h * width * s.c;
    tile.kernel_rows = s.kh;
    tile.depth = depth;
    tile.least = activation == Activation::relu ? 0.0f : -HUGE_VALF;
    tile.y_pixel = s.oc;
    // Of a single panel whole vectors are written, whose surplus the next positions overwrite; but
    // not beyond the results of this item.
    const float* const y_end = y + (image * s.oh + end) * s.ow * s.oc;
    for (int64_t row = begin; row < end; ++row) {
      const float* const from = band + (row - begin) * s.stride_h * width * s.c;
      float* const to = y + (image * s.oh + row) * s.ow * s.oc;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t vectors = panel_vectors(s.oc, panel), first = panel * panel_lanes;
        tile.w = packed + s.kh * depth * first;
        tile.bias = b != nullptr ? b + first : nullptr;
        tile.features = s.oc - first;
        for_parts(s.ow, ceil_div(s.ow, tile_rows[vectors]), [&](int64_t col, int64_t positions) {
          tile.x = from + col * Step;
          tile.y = to + col * s.oc + first;
          const int64_t whole = vectors * lanes;
          const bool surplus = panels == 1 && y_end - tile.y >= (positions - 1) * s.oc + whole;
          tile.stored = surplus ? whole : tile.features;
          run_tile(tile, vectors, positions);
        });
      }
    }
  });
}

// ---------------------------------------------------------------------------------------------
// Weight gradient

// What a part of a row of the kernel, P floats of x, gets from a block of pixels.
struct FirstWeightsTile {
  const float* x;  // under the part, at the first pixel
  int64_t x_row, x_pixel;
  const float *dy, *y;  // y: where not positive, dy does not count
  int64_t dy_row, dy_pixel;
  int64_t rows, pixels;
  int64_t features;  // how many features of the panel exist
  float* sums;       // [P][Q * lanes], added to
  float* bias;       // [Q * lanes], added to
};

template <int P, int Q, bool masked, bool with_bias>
__attribute__((noinline)) void compute_part(const FirstWeightsTile& tile) {
  vec sum[P][Q], bias[Q];
#pragma GCC unroll 16
  for (int q = 0; q < Q; ++q) {
    bias[q] = zero();
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sum[p][q] = zero();
  }
  const int64_t last = min(tile.features - (Q - 1) * lanes, lanes);
  const bool whole = last == lanes;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const float* x = tile.x + row * tile.x_row;
    const float* dy = tile.dy + row * tile.dy_row;
    const float* y = masked ? tile.y + row * tile.dy_row : nullptr;
    for (int64_t pixel = 0; pixel < tile.pixels; ++pixel) {
      // Else the compiler keeps what pixels share on the stack.
      keep_in_register(x);
      vec gradient[Q];
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q) {
        const bool part = q == Q - 1 && !whole;
        const float* const at = dy + q * lanes;
        gradient[q] = part ? load_n(at, last) : load(at);
        if (masked) {
          const vec output = part ? load_n(y + q * lanes, last) : load(y + q * lanes);
          gradient[q] = where_positive(output, gradient[q]);
        }
        if (with_bias) bias[q] = add(bias[q], gradient[q]);
      }
      add_products(sum, [&](int p) { return broadcast(x[p]); }, [&](int q) { return gradient[q]; });
      x += tile.x_pixel;
      dy += tile.dy_pixel;
      if (masked) y += tile.dy_pixel;
    }
  }
  float* to = tile.sums;
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q, to += lanes) store(to, add(load(to), sum[p][q]));
  }
  if (!with_bias) return;
  to = tile.bias;
  for (int q = 0; q < Q; ++q, to += lanes) store(to, add(load(to), bias[q]));
}

template <int P, int Q>
void compute(const FirstWeightsTile& tile) {
  if (tile.y != nullptr) {
    tile.bias != nullptr ? compute_part<P, Q, true, true>(tile)
                         : compute_part<P, Q, true, false>(tile);
  } else {
    tile.bias != nullptr ? compute_part<P, Q, false, true>(tile)
                         : compute_part<P, Q, false, false>(tile);
  }
}

}  // namespace

bool first_fits(const Conv2dShape& s) {
  // With larger steps a band would have rows that nobody reads.
  constexpr int64_t most_rows = 8;
  const int64_t step = s.stride_w * s.c;
  return s.groups == 1 && s.dilation_w == 1 && s.dilation_h <= most_rows &&
         s.stride_h <= most_rows && s.c <= 4 && step <= 8 && step != 5 && step != 7;
}

void conv2d_first(const Conv2dShape& s, Activation activation, const float* x, const float* w,
                  const float* b, float* y) {
  if (s.n == 0) return;
  switch (s.stride_w * s.c) {
    case 1:
      return run<1>(s, activation, x, w, b, y);
    case 2:
      return run<2>(s, activation, x, w, b, y);
    case 3:
      return run<3>(s, activation, x, w, b, y);
    case 4:
      return run<4>(s, activation, x, w, b, y);
    case 6:
      return run<6>(s, activation, x, w, b, y);
    default:
      return run<8>(s, activation, x, w, b, y);
  }
}

void conv2d_first_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                                   const float* y, const float* x, float* dw, float* db) {
  const int64_t panels = panel_count(s.oc), width_f = padded_features(s.oc), depth = s.kw * s.c;
  const int64_t width = padded_w(s);
  const int64_t reach = (s.kh - 1) * s.dilation_h + 1;
  const int64_t rows_of_dw = s.kh * depth, sums_size = rows_of_dw * width_f;

  // A block is some rows of dy, or a part of one: what a panel reads of dy and y, once for every
  // part of the kernel, should stay in the first-level cache.
  constexpr int64_t block_pixels = 96;
  const int64_t block_rows = max(1, min(s.oh, block_pixels / s.ow));
  const int64_t column_parts = ceil_div(s.ow, 2 * block_pixels);
  const int64_t image_blocks = ceil_div(s.oh, block_rows), blocks = s.n * image_blocks;
  // Each chunk of the blocks has sums of its own.
  constexpr int64_t max_chunks = 32;
  const int64_t chunks = min(blocks, max_chunks);

  Scratch memory;
  const int64_t sums_at = memory.reserve<float>(chunks * sums_size);
  const int64_t bias_at = memory.reserve<float>(chunks * width_f);
  memory.allocate();
  float* const all_sums = memory.at<float>(sums_at);
  float* const all_bias = memory.at<float>(bias_at);

  parallel_for(num_threads(), chunks, [&](int64_t chunk, int) {
    Scratch own;
    const int64_t band_at =
        own.reserve<float>(((block_rows - 1) * s.stride_h + reach) * width * s.c);
    own.allocate(ScratchUse::worker);
    float* const band = own.at<float>(band_at);
    float* const sums = all_sums + chunk * sums_size;
    float* const bias = all_bias + chunk * width_f;
    clear(sums, sums_size);
    clear(bias, width_f);

    FirstWeightsTile tile{};
    tile.x_row = s.stride_h * width * s.c;
    tile.x_pixel = s.stride_w * s.c;
    tile.dy_row = s.ow * s.oc;
    tile.dy_pixel = s.oc;
    const int64_t end = part_begin(blocks, chunks, chunk + 1);
    for (int64_t block = part_begin(blocks, chunks, chunk); block < end; ++block) {
      const int64_t image = block / image_blocks, row = block % image_blocks * block_rows;
      tile.rows = min(block_rows, s.oh - row);
      copy_padded(s, x + image * s.h * s.w * s.c, row * s.stride_h - s.pad_top, -s.pad_left,
                  (tile.rows - 1) * s.stride_h + reach, width, band);
      const int64_t at = (image * s.oh + row) * tile.dy_row;
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t vectors = panel_vectors(s.oc, panel), first = panel * panel_lanes;
        tile.features = s.oc - first;
        for_parts(s.ow, column_parts, [&](int64_t column, int64_t pixels) {
          tile.pixels = pixels;
          const int64_t from = at + column * s.oc + first;
          tile.dy = dy + from;
          tile.y = activation == Activation::relu ? y + from : nullptr;
          tile.bias = bias + first;
          for (int64_t r = 0; r < s.kh; ++r) {
            for_parts(depth, ceil_div(depth, tile_rows[vectors]), [&](int64_t k, int64_t floats) {
              tile.x = band + r * s.dilation_h * width * s.c + column * tile.x_pixel + k;
              tile.sums = sums + first * rows_of_dw + (r * depth + k) * vectors * lanes;
              run_tile(tile, vectors, floats);
              tile.bias = nullptr;  // it is in already
            });
          }
        });
      }
    }
  });

  // Add the chunks up, in their order, and leave out the lanes that do not exist.
  parallel_ranges(sums_size, 16 * 1024, [&](int64_t begin, int64_t end) {
    add_arrays(all_sums, all_sums + sums_size, chunks - 1, sums_size, begin, end);
  });
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t vectors = panel_vectors(s.oc, panel), first = panel * panel_lanes;
    const float* from = all_sums + first * rows_of_dw;
    for (int64_t row = 0; row < rows_of_dw; ++row, from += vectors * lanes) {
      copy(dw + row * s.oc + first, from, min(vectors * lanes, s.oc - first));
    }
  }
  add_arrays(all_bias, all_bias + width_f, chunks - 1, width_f, 0, width_f);
  if (db != nullptr) copy(db, all_bias, s.oc);
}

}  // namespace pyconv::cpu::PYCONV_ISA
