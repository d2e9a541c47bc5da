// Convolution and dense layers of many channels to four features or fewer, as networks end that
// make images, masks or a single number: forward and the gradients with respect to the weights
// and, where the kernel has a single tap, the data.
//
// Elsewhere lanes run along the features, of which there are too few to fill a vector. Here they
// run along the channels. A result is the product of two vectors, x under the window and the
// weights of its feature, whose lanes are added up at the end; x under a row of taps that are
// neighbours is one run. The weight gradient is a sum over pixels of channels times a number, the
// feature's gradient. In both of them a few positions, or a few taps, go together, so that there
// are enough sums that do not wait for each other. The data gradient has its lanes along the
// channels in any case; with a single tap its sums are so short that it is bound by writing them.
//
// Deterministic: results are summed in one order. In the weight gradient chunks of blocks of
// pixels, whose number depends on the shape only, have sums of their own, which are added in their
// order.
#include "conv2d.hpp"
#include "tiles.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

constexpr int most_features = lanes >= 8 ? 4 : lanes / 2;
// Positions or taps that go together with so many features.
constexpr int most_sums = tile_rows[2] * 2;
template <int F>
constexpr int most_together = most_sums / F < 8 ? most_sums / F : 8;
// Positions of a block.
constexpr int64_t block_positions = 256;

bool has_one_tap(const Conv2dShape& s) { return s.kh == 1 && s.kw == 1; }
bool has_padding(const Conv2dShape& s) {
  return s.pad_top > 0 || s.pad_left > 0 || padded_h(s) > s.h || padded_w(s) > s.w;
}

// The same with the pixels of a dense layer, or of a 1x1 convolution that takes all of them, in one
// row of one image.
bool makes_one_row(const Conv2dShape& s) {
  return has_one_tap(s) && s.stride_h == 1 && s.stride_w == 1 && s.oh == s.h && s.ow == s.w;
}
Conv2dShape in_one_row(const Conv2dShape& s) {
  Conv2dShape row = s;
  if (makes_one_row(s)) {
    row.n = row.h = row.oh = 1;
    row.w = row.ow = s.n * s.h * s.w;
  }
  return row;
}

// The output as blocks of an image: some rows, or a part of one.
struct Blocks {
  int64_t rows, cols;  // in a block
  int64_t row_parts, col_parts;
  int64_t count;  // in the batch

  Blocks(const Conv2dShape& s, int64_t positions)
      : rows(max(1, min(s.oh, positions / s.ow))),
        cols(min(s.ow, positions)),
        row_parts(ceil_div(s.oh, rows)),
        col_parts(ceil_div(s.ow, cols)),
        count(s.n * row_parts * col_parts) {}
};
struct Block {
  int64_t image, row, rows, col, cols;

  Block(const Conv2dShape& s, const Blocks& of, int64_t index)
      : image(index / of.col_parts / of.row_parts),
        row(index / of.col_parts % of.row_parts * of.rows),
        rows(min(of.rows, s.oh - row)),
        col(index % of.col_parts * of.cols),
        cols(min(of.cols, s.ow - col)) {}
  // Index of its first position.
  int64_t at(const Conv2dShape& s) const { return (image * s.oh + row) * s.ow + col; }
  // What its windows reach over, in pixels of the image; the first may lie in the padding.
  int64_t top(const Conv2dShape& s) const { return row * s.stride_h - s.pad_top; }
  int64_t left(const Conv2dShape& s) const { return col * s.stride_w - s.pad_left; }
};
int64_t reach_h(const Conv2dShape& s, int64_t rows) {
  return (rows - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1;
}
int64_t reach_w(const Conv2dShape& s, int64_t cols) {
  return (cols - 1) * s.stride_w + (s.kw - 1) * s.dilation_w + 1;
}

// ---------------------------------------------------------------------------------------------
// Forward

// Runs of x under a window, and of the weights with them.
struct Runs {
  int64_t rows, row_x;  // how many rows of taps, and from one to the next in x
  int64_t runs, run_x;  // in a row, likewise
  int64_t length;
};
struct Products {
  Runs runs;
  const float* x;
  int64_t position_x;  // from a position to the next
  const float* w;      // [features][terms]
  int64_t terms;
  const float* bias;
  bool relu;
  float* y;  // [positions][features]
};

// Not inlined into its callers, which would cost it registers.
template <int F, int P>
[[gnu::noinline]] void multiply(const Products& of) {
  vec sum[P][F];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) sum[p][f] = zero();
  }
  const int64_t length = of.runs.length, terms = of.terms;
  const float* w = of.w;
  for (int64_t row = 0; row < of.runs.rows; ++row) {
    for (int64_t run = 0; run < of.runs.runs; ++run, w += length) {
      const float* x[P];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        x[p] = of.x + p * of.position_x + row * of.runs.row_x + run * of.runs.run_x;
      }
      int64_t k = 0;
      for (; k + lanes <= length; k += lanes) {
        add_products(
            sum, [&](int p) { return load(x[p] + k); },
            [&](int f) { return load(w + f * terms + k); });
      }
      if (k < length) {
        add_products(
            sum, [&](int p) { return load_n(x[p] + k, length - k); },
            [&](int f) { return load_n(w + f * terms + k, length - k); });
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) {
      const float y = sum_lanes(sum[p][f]) + (of.bias != nullptr ? of.bias[f] : 0.0f);
      of.y[p * F + f] = of.relu && y < 0.0f ? 0.0f : y;
    }
  }
}
template <int F, int P = most_together<F>>
void multiply(const Products& of, int64_t positions) {
  if (positions == P) {
    multiply<F, P>(of);
  } else if constexpr (P > 1) {
    multiply<F, P - 1>(of, positions);
  }
}

template <int F>
void forward(const Conv2dShape& s, Activation activation, const float* x, const float* w,
             const float* b, float* y) {
  const int threads = num_threads();
  const int64_t terms = s.kh * s.kw * s.c;
  const int64_t share = ceil_div(s.n * s.oh * s.ow, items_per_thread * threads);
  const Blocks blocks(s, max(most_together<F>, min(block_positions, share)));
  Scratch memory;
  const int64_t weights_at = memory.reserve<float>(F * terms);
  memory.allocate();
  float* const weights = memory.at<float>(weights_at);
  transpose(w, F, terms, F, weights, terms);
  const int64_t copy_size = reach_h(s, blocks.rows) * reach_w(s, blocks.cols) * s.c;
  parallel_for(threads, blocks.count, [&](int64_t item, int) {
    const Block block(s, blocks, item);
    const int64_t height = reach_h(s, block.rows), width = reach_w(s, block.cols);
    const int64_t top = block.top(s), left = block.left(s);
    const float* const image = x + block.image * s.h * s.w * s.c;
    const float* source = nullptr;
    int64_t line = 0;
    if (top < 0 || left < 0 || top + height > s.h || left + width > s.w) {
      Scratch own;
      const int64_t copy_at = own.reserve<float>(copy_size);
      own.allocate(ScratchUse::worker);
      copy_padded(s, image, top, left, height, width, own.at<float>(copy_at));
      source = own.at<float>(copy_at);
      line = width * s.c;
    } else {
      source = image + (top * s.w + left) * s.c;
      line = s.w * s.c;
    }
    Products of{};
    of.runs = {s.kh, s.dilation_h * line, s.kw, s.dilation_w * s.c, s.c};
    if (s.dilation_w == 1) of.runs.runs = 1, of.runs.length = s.kw * s.c;
    of.position_x = s.stride_w * s.c;
    of.w = weights;
    of.terms = terms;
    of.bias = b;
    of.relu = activation == Activation::relu;
    for (int64_t row = 0; row < block.rows; ++row) {
      const float* const from = source + row * s.stride_h * line;
      float* const to = y + (block.at(s) + row * s.ow) * F;
      for_parts(block.cols, ceil_div(block.cols, most_together<F>),
                [&](int64_t first, int64_t positions) {
                  of.x = from + first * of.position_x;
                  of.y = to + first * F;
                  multiply<F>(of, positions);
                });
    }
  });
}

// ---------------------------------------------------------------------------------------------
// Data gradient of a single tap

// dx[p, c] = sum over the features of dy[p, f] * weights[f, c] for P pixels
template <int F, int P>
void spread(int64_t channels, const float* dy, const float* weights, float* dx) {
  vec gradients[P][F];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) gradients[p][f] = broadcast(dy[p * F + f]);
  }
  // The last vector begins where it is whole.
  for (int64_t next = 0; next < channels; next += lanes) {
    const int64_t c = min(next, channels - lanes);
    vec w[F];
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) w[f] = load(weights + f * channels + c);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      vec sum = mul(gradients[p][0], w[0]);
#pragma GCC unroll 4
      for (int f = 1; f < F; ++f) sum = fmadd(gradients[p][f], w[f], sum);
      store(dx + p * channels + c, sum);
    }
  }
}

template <int F>
void backward_data(const Conv2dShape& s, Activation activation, const float* dy, const float* y,
                   const float* w, float* dx) {
  constexpr int together = most_sums / 2 / F;
  constexpr int64_t piece = 16 * 1024;
  Scratch memory;
  const int64_t weights_at = memory.reserve<float>(F * s.c);
  memory.allocate();
  float* const weights = memory.at<float>(weights_at);
  transpose(w, F, s.c, F, weights, s.c);
  parallel_ranges(s.ow, max(1, piece / s.c), [=](int64_t begin, int64_t end) {
    for (int64_t p = begin, count = 0; p < end; p += count) {
      count = min(together, end - p);
      const float* gradients = dy + p * F;
      float masked[together * F];
      if (activation == Activation::relu) {
        masked_copy(gradients, y + p * F, masked, count * F);
        gradients = masked;
      }
      float* const to = dx + p * s.c;
      if (count == together) {
        spread<F, together>(s.c, gradients, weights, to);
      } else {
        for (int64_t i = 0; i < count; ++i) {
          spread<F, 1>(s.c, gradients + i * F, weights, to + i * s.c);
        }
      }
    }
  });
}

// ---------------------------------------------------------------------------------------------
// Weight gradient

// sums[t, f] (+)= sum over pixels of x[t][pixel] * dy[pixel, f]
struct PixelSums {
  const float* x[most_together<1>];  // of every tap, at the first pixel
  int64_t x_row, x_pixel;
  const float* dy;  // [rows][pixels][features], rows a step apart
  int64_t dy_row;
  int64_t rows, pixels;
  float* sums;  // [taps][features] vectors
  bool overwrite;
};

template <int F, int T>
[[gnu::noinline]] void add_pixels(const PixelSums& of) {
  vec sum[T][F];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) sum[t][f] = zero();
  }
  const int64_t pixels = of.pixels, x_pixel = of.x_pixel;
  for (int64_t row = 0; row < of.rows; ++row) {
    const float* x[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) x[t] = of.x[t] + row * of.x_row;
    const float* dy = of.dy + row * of.dy_row;
    int64_t at = 0;
    for (int64_t pixel = 0; pixel < pixels; ++pixel, at += x_pixel, dy += F) {
      add_products(
          sum, [&](int t) { return load(x[t] + at); }, [&](int f) { return broadcast(dy[f]); });
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) {
      float* const to = of.sums + (t * F + f) * lanes;
      store(to, of.overwrite ? sum[t][f] : add(load(to), sum[t][f]));
    }
  }
}
template <int F, int T = most_together<F>>
void add_pixels(const PixelSums& of, int64_t taps) {
  if (taps == T) {
    add_pixels<F, T>(of);
  } else if constexpr (T > 1) {
    add_pixels<F, T - 1>(of, taps);
  }
}

// Copies `lanes` channels of the pixels that a block's windows reach over, zeros in the padding.
void copy_channels(const Conv2dShape& s, const float* image, int64_t top, int64_t left,
                   int64_t height, int64_t width, float* to) {
  for (int64_t row = top; row < top + height; ++row) {
    for (int64_t col = left; col < left + width; ++col, to += lanes) {
      const bool inside = row >= 0 && row < s.h && col >= 0 && col < s.w;
      store(to, inside ? load(image + (row * s.w + col) * s.c) : zero());
    }
  }
}

// bias[f] += sum over pixels of dy[pixel, f]
template <int F>
void add_gradients(const float* dy, int64_t count, float* bias) {
  vec sum[F];
  for (int v = 0; v < F; ++v) sum[v] = zero();
  int64_t i = 0;
  for (; i + F * lanes <= count; i += F * lanes) {
    for (int v = 0; v < F; ++v) sum[v] = add(sum[v], load(dy + i + v * lanes));
  }
  float sums[F * lanes];
  for (int v = 0; v < F; ++v) store(sums + v * lanes, sum[v]);
  for (int k = 0; k < F * lanes; ++k) bias[k % F] += sums[k];
  for (; i < count; ++i) bias[i % F] += dy[i];
}

template <int F>
void backward_weights(const Conv2dShape& s, Activation activation, const float* dy, const float* y,
                      const float* x, float* dw, float* db) {
  constexpr int64_t partial_bytes = 8 << 20, max_chunks = 32;
  const bool one_tap = has_one_tap(s);
  const int64_t taps = s.kh * s.kw, vectors = ceil_div(s.c, lanes);
  // Of several taps a vector of channels at a time, so that what they meet of x, which is copied,
  // stays in the first-level cache. With one tap vectors take the place of taps.
  const int64_t item_vectors = one_tap ? most_together<F> : 1;
  const int64_t parts = ceil_div(vectors, item_vectors);
  const Blocks blocks(s, block_positions);
  const int64_t size = taps * vectors * F * lanes;
  const int64_t chunks =
      max(1, min(min(blocks.count, max_chunks), partial_bytes / (float_bytes * size)));
  const int64_t copy_size = one_tap ? 0 : reach_h(s, blocks.rows) * reach_w(s, blocks.cols) * lanes;
  const int64_t masked_size = activation == Activation::relu ? blocks.rows * blocks.cols * F : 0;
  Scratch memory;
  const int64_t sums_at = memory.reserve<float>(chunks * size);
  const int64_t biases_at = memory.reserve<float>(chunks * F);
  memory.allocate();
  float* const all_sums = memory.at<float>(sums_at);
  float* const biases = memory.at<float>(biases_at);
  clear(biases, chunks * F);
  // The last vector begins where it is whole, and has some channels of the one before it.
  const auto channel_of = [&](int64_t vector) { return min(vector * lanes, s.c - lanes); };

  parallel_for(num_threads(), chunks * parts, [&](int64_t item, int) {
    const int64_t chunk = item / parts, part = item % parts;
    const int64_t first_vector = part * item_vectors;
    const int64_t count = taps * min(item_vectors, vectors - first_vector);
    float* const sums = all_sums + chunk * size + first_vector * taps * F * lanes;
    Scratch own;
    const int64_t copy_at = own.reserve<float>(copy_size);
    const int64_t masked_at = own.reserve<float>(masked_size);
    own.allocate(ScratchUse::worker);
    float* const copied = own.at<float>(copy_at);
    float* const masked = own.at<float>(masked_at);
    const int64_t begin = part_begin(blocks.count, chunks, chunk);
    const int64_t end = part_begin(blocks.count, chunks, chunk + 1);
    for (int64_t index = begin; index < end; ++index) {
      const Block block(s, blocks, index);
      const int64_t at = block.at(s) * F;
      PixelSums of{};
      of.rows = block.rows, of.pixels = block.cols;
      of.overwrite = index == begin;
      of.dy = dy + at;
      of.dy_row = s.ow * F;
      if (activation == Activation::relu) {
        for (int64_t row = 0; row < block.rows; ++row) {
          masked_copy(dy + at + row * s.ow * F, y + at + row * s.ow * F,
                      masked + row * block.cols * F, block.cols * F);
        }
        of.dy = masked;
        of.dy_row = block.cols * F;
      }
      if (part == 0) {
        for (int64_t row = 0; row < block.rows; ++row) {
          add_gradients<F>(of.dy + row * of.dy_row, block.cols * F, biases + chunk * F);
        }
      }
      const float* const image = x + block.image * s.h * s.w * s.c;
      const int64_t top = block.top(s), left = block.left(s);
      const float* source = copied;
      int64_t pixel = lanes, line = reach_w(s, block.cols) * lanes;
      if (one_tap) {
        source = image + (top * s.w + left) * s.c;
        pixel = s.c, line = s.w * s.c;
      } else {
        const int64_t height = reach_h(s, block.rows), width = reach_w(s, block.cols);
        copy_channels(s, image + channel_of(first_vector), top, left, height, width, copied);
      }
      of.x_pixel = s.stride_w * pixel;
      of.x_row = s.stride_h * line;
      for_parts(count, ceil_div(count, most_together<F>), [&](int64_t first, int64_t together) {
        for (int64_t i = 0; i < together; ++i) {
          const int64_t tap = one_tap ? 0 : first + i;
          of.x[i] = source + tap / s.kw * s.dilation_h * line + tap % s.kw * s.dilation_w * pixel;
          if (one_tap) of.x[i] += channel_of(first_vector + first + i);
        }
        of.sums = sums + first * F * lanes;
        add_pixels<F>(of, together);
      });
    }
  });

  // Add the chunks up, in their order, channels and features changing places.
  parallel_ranges(vectors * taps, max(1, 4096 / (chunks * F * lanes)),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) {
                      const int64_t vector = i / taps, tap = i % taps;
                      const int64_t channel = channel_of(vector), done = vector * lanes - channel;
                      float* const to = dw + (tap * s.c + channel) * F;
                      for (int f = 0; f < F; ++f) {
                        const float* const from = all_sums + (i * F + f) * lanes;
                        vec sum = load(from);
                        for (int64_t chunk = 1; chunk < chunks; ++chunk)
                          sum = add(sum, load(from + chunk * size));
                        float channels[lanes];
                        store(channels, sum);
                        for (int64_t k = done; k < lanes; ++k) to[k * F + f] = channels[k];
                      }
                    }
                  });
  if (db == nullptr) return;
  copy(db, biases, F);
  add_arrays(db, biases + F, chunks - 1, F, 0, F);
}

// run.template operator()<F>() for so many features.
template <int F = most_features, class Run>
void with_features(int64_t features, const Run& run) {
  if (features == F) {
    run.template operator()<F>();
  } else if constexpr (F > 1) {
    with_features<F - 1>(features, run);
  }
}

}  // namespace

bool last_fits(const Conv2dShape& s) {
  if (s.groups != 1 || s.oc > most_features || s.c < 2 * lanes) return false;
  if (has_one_tap(s)) return !has_padding(s);
  // In floating point, which products of huge padding or dilation do not overflow.
  const auto area = [](int64_t h, int64_t w) {
    return static_cast<double>(h) * static_cast<double>(w);
  };
  // Padding is multiplied like all else. What a block copies of x is multiplied as often as it has
  // pixels, at least: strides and dilation may leave gaps between them.
  const Blocks blocks(s, block_positions);
  return (!has_padding(s) || area(padded_h(s), padded_w(s)) <= 2 * area(s.h, s.w)) &&
         area(reach_h(s, blocks.rows), reach_w(s, blocks.cols)) <=
             area(s.kh * blocks.rows, s.kw * blocks.cols);
}
bool last_pays_forward(const Conv2dShape& s) {
  constexpr int64_t lanes_cost = 12;  // of adding up the lanes of a result, in vectors of terms
  const int64_t terms = s.kh * s.kw * s.c;
  return s.oc * (terms / lanes + lanes_cost) < terms;
}
bool last_pays_weights(const Conv2dShape& s) {
  constexpr int64_t least_positions = 16;
  return s.n * s.oh * s.ow >= least_positions;
}
bool last_fits_data(const Conv2dShape& s) { return last_fits(s) && makes_one_row(s); }

void conv2d_last(const Conv2dShape& s, Activation activation, const float* x, const float* w,
                 const float* b, float* y) {
  with_features(s.oc, [&]<int F>() { forward<F>(in_one_row(s), activation, x, w, b, y); });
}

void conv2d_last_backward_data(const Conv2dShape& s, Activation activation, const float* dy,
                               const float* y, const float* w, float* dx) {
  with_features(s.oc, [&]<int F>() { backward_data<F>(in_one_row(s), activation, dy, y, w, dx); });
}

void conv2d_last_backward_weights(const Conv2dShape& s, Activation activation, const float* dy,
                                  const float* y, const float* x, float* dw, float* db) {
  with_features(s.oc,
                [&]<int F>() { backward_weights<F>(in_one_row(s), activation, dy, y, x, dw, db); });
}

}  // namespace pyconv::cpu::PYCONV_ISA
