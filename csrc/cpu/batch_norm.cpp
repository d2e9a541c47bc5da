// Batch normalization over rows of c channels, forward and backward. With xh = (x - mean) * inverse
// and inverse = 1 / sqrt(variance + epsilon), channel by channel:
//
//   batch_norm           y = gamma * xh + beta, with the mean and variance given     overwrites y
//   batch_norm_training  the same with those of the rows; variance is the mean of (x - mean)^2
//                        moving = momentum * moving + (1 - momentum) * that of the rows
//                        overwrites y, mean, inverse, updates both moving averages
//   batch_norm_backward  dbeta = sum dy, dgamma = sum dy * xh,
//                        dx = gamma * inverse * (dy - (dbeta + xh * dgamma) / rows)
//                        overwrites dx, dgamma, dbeta
//
// y may be x, and dx may be dy. (S. Ioffe, C. Szegedy, arXiv:1502.03167.)
//
// Bound by memory: forward and backward go over their inputs twice, once for the sums and once for
// the result. For the sums, rows are cut into chunks. A chunk's mean is taken first, then, while a
// cache still has it, the sum of squares around it, which so loses nothing to cancellation; what
// rounding did to the mean is taken out again. Chunks are combined in their order, in double: so no
// bit depends on the threads. (T. Chan, G. Golub, R. LeVeque, "Algorithms for computing the sample
// variance", The American Statistician 37, 1983.)
#include <math.h>

#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

constexpr int64_t chunk_rows = 256, tile_channels = 256;
constexpr int64_t channel_block = 64;  // of what is done once a channel

// Rows in chunks, each with two doubles a channel for its sums. Threads share tiles of them.
class Chunks {
 public:
  Chunks(int64_t rows, int64_t c) : rows_(rows), c_(c) {}

  int64_t count() const { return ceil_div(rows_, chunk_rows); }
  int64_t rows(int64_t chunk) const { return min(chunk_rows, rows_ - chunk * chunk_rows); }
  int64_t begin(int64_t chunk) const { return chunk * chunk_rows * c_; }  // first value
  int64_t doubles() const { return 2 * count() * c_; }
  double* doubles_of(double* all, int64_t chunk) const { return all + 2 * chunk * c_; }

  // body(chunk, begin, end) for some channels of a chunk, on all threads.
  template <class Body>
  void in_parallel(const Body& body) const {
    const int64_t across = ceil_div(c_, tile_channels);
    parallel_for(num_threads(), count() * across, [&](int64_t item, int) {
      const int64_t begin = item % across * tile_channels;
      body(item / across, begin, min(begin + tile_channels, c_));
    });
  }

 private:
  int64_t rows_, c_;
};

template <int n>
struct Vectors {
  static constexpr int count = n;
};

// body(Vectors<n>, channel, part, row, last) for all of a tile: n whole vectors from `channel` on,
// or a part of one, in the rows [row, last). A few rows at a time: so what belongs to a channel
// stays in registers from row to row, and yet memory is read and written in runs.
template <class Body>
void for_tile(int64_t rows, int64_t begin, int64_t end, const Body& body) {
  constexpr int64_t step = 8;
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t last = min(row + step, rows);
    int64_t channel = begin;
    for (; channel + 4 * lanes <= end; channel += 4 * lanes) {
      body(Vectors<4>(), channel, int64_t{lanes}, row, last);
    }
    for (; channel < end; channel += lanes) {
      body(Vectors<1>(), channel, min(lanes, end - channel), row, last);
    }
  }
}

// Sums of a tile, a float a channel.
class Sums {
 public:
  Sums(int64_t begin, int64_t end) : begin_(begin) { clear(values_, end - begin + lanes); }
  float* at(int64_t channel) { return values_ + channel - begin_; }
  double operator[](int64_t channel) const {
    return static_cast<double>(values_[channel - begin_]);
  }

 private:
  int64_t begin_;
  float values_[tile_channels + lanes];
};

// The mean, and the sum of squares around it.
void moments(int64_t rows, int64_t c, int64_t begin, int64_t end, const float* x, double* mean,
             double* squares) {
  const double n = static_cast<double>(rows);
  Sums center(begin, end), rest(begin, end), square(begin, end);
  for_tile(rows, begin, end,
           [&](auto group, int64_t channel, int64_t part, int64_t row, int64_t last) {
             constexpr int vectors = decltype(group)::count;
             vec sum[vectors];
             for (int v = 0; v < vectors; ++v) sum[v] = load(center.at(channel) + v * lanes);
             for (; row < last; ++row) {
               const float* const at = x + row * c + channel;
               for (int v = 0; v < vectors; ++v)
                 sum[v] = add(sum[v], load_part(at + v * lanes, part));
             }
             for (int v = 0; v < vectors; ++v) store(center.at(channel) + v * lanes, sum[v]);
           });
  for (int64_t i = begin; i < end; ++i) *center.at(i) = static_cast<float>(center[i] / n);
  for_tile(rows, begin, end,
           [&](auto group, int64_t channel, int64_t part, int64_t row, int64_t last) {
             constexpr int vectors = decltype(group)::count;
             vec around[vectors], sum[vectors], of_squares[vectors];
             for (int v = 0; v < vectors; ++v) {
               around[v] = load(center.at(channel) + v * lanes);
               sum[v] = load(rest.at(channel) + v * lanes);
               of_squares[v] = load(square.at(channel) + v * lanes);
             }
             for (; row < last; ++row) {
               const float* const at = x + row * c + channel;
               for (int v = 0; v < vectors; ++v) {
                 const vec d = sub(load_part(at + v * lanes, part), around[v]);
                 sum[v] = add(sum[v], d);
                 of_squares[v] = fmadd(d, d, of_squares[v]);
               }
             }
             for (int v = 0; v < vectors; ++v) {
               store(rest.at(channel) + v * lanes, sum[v]);
               store(square.at(channel) + v * lanes, of_squares[v]);
             }
           });
  for (int64_t i = begin; i < end; ++i) {
    const double off = rest[i] / n;
    mean[i] = center[i] + off;
    const double around = square[i] - rest[i] * off;
    squares[i] = around < 0.0 ? 0.0 : around;  // roundings of equal values; NaN stays NaN
  }
}

// The sums of dy and of dy * (x - mean).
void gradient_sums(int64_t rows, int64_t c, int64_t begin, int64_t end, const float* dy,
                   const float* x, const float* mean, double* of_dy, double* of_product) {
  Sums sums(begin, end), products(begin, end);
  for_tile(rows, begin, end,
           [&](auto group, int64_t channel, int64_t part, int64_t row, int64_t last) {
             constexpr int vectors = decltype(group)::count;
             vec center[vectors], sum[vectors], product[vectors];
             for (int v = 0; v < vectors; ++v) {
               center[v] = load_part(mean + channel + v * lanes, part);
               sum[v] = load(sums.at(channel) + v * lanes);
               product[v] = load(products.at(channel) + v * lanes);
             }
             for (; row < last; ++row) {
               for (int v = 0; v < vectors; ++v) {
                 const int64_t at = row * c + channel + v * lanes;
                 const vec g = load_part(dy + at, part);
                 sum[v] = add(sum[v], g);
                 product[v] = fmadd(g, sub(load_part(x + at, part), center[v]), product[v]);
               }
             }
             for (int v = 0; v < vectors; ++v) {
               store(sums.at(channel) + v * lanes, sum[v]);
               store(products.at(channel) + v * lanes, product[v]);
             }
           });
  for (int64_t i = begin; i < end; ++i) {
    of_dy[i] = sums[i];
    of_product[i] = products[i];
  }
}

// y = (x - mean) * scale + beta, beta may be null.
void normalize(int64_t rows, int64_t c, const float* x, const float* mean, const float* scale,
               const float* beta, float* y) {
  const Chunks chunks(rows, c);
  chunks.in_parallel([&](int64_t chunk, int64_t begin, int64_t end) {
    for_tile(chunks.rows(chunk), begin, end,
             [&](auto group, int64_t channel, int64_t part, int64_t row, int64_t last) {
               constexpr int vectors = decltype(group)::count;
               vec center[vectors], factor[vectors], shift[vectors];
               for (int v = 0; v < vectors; ++v) {
                 const int64_t i = channel + v * lanes;
                 center[v] = load_part(mean + i, part), factor[v] = load_part(scale + i, part);
                 shift[v] = beta == nullptr ? zero() : load_part(beta + i, part);
               }
               for (; row < last; ++row) {
                 for (int v = 0; v < vectors; ++v) {
                   const int64_t at = chunks.begin(chunk) + row * c + channel + v * lanes;
                   const vec d = sub(load_part(x + at, part), center[v]);
                   store_part(y + at, fmadd(d, factor[v], shift[v]), part);
                 }
               }
             });
  });
}

double gamma_of(const float* gamma, int64_t channel) {
  return gamma == nullptr ? 1.0 : static_cast<double>(gamma[channel]);
}

}  // namespace

void batch_norm(int64_t rows, int64_t c, const float* x, const float* gamma, const float* beta,
                const float* mean, const float* variance, double epsilon, float* y) {
  Scratch memory;
  const int64_t scale_at = memory.reserve<float>(c);
  memory.allocate();
  float* const scale = memory.at<float>(scale_at);
  for (int64_t i = 0; i < c; ++i) {
    scale[i] =
        static_cast<float>(gamma_of(gamma, i) / sqrt(static_cast<double>(variance[i]) + epsilon));
  }
  normalize(rows, c, x, mean, scale, beta, y);
}

void batch_norm_training(int64_t rows, int64_t c, const float* x, const float* gamma,
                         const float* beta, double momentum, double epsilon, float* moving_mean,
                         float* moving_variance, float* mean, float* inverse, float* y) {
  const Chunks chunks(rows, c);
  Scratch memory;
  const int64_t scale_at = memory.reserve<float>(c);
  const int64_t sums_at = memory.reserve<double>(chunks.doubles());
  memory.allocate();
  float* const scale = memory.at<float>(scale_at);
  double* const sums = memory.at<double>(sums_at);
  chunks.in_parallel([&](int64_t chunk, int64_t begin, int64_t end) {
    double* const of_chunk = chunks.doubles_of(sums, chunk);
    moments(chunks.rows(chunk), c, begin, end, x + chunks.begin(chunk), of_chunk, of_chunk + c);
  });

  const double n = static_cast<double>(rows);
  const auto move = [&](float& moving, double towards) {
    moving =
        static_cast<float>(static_cast<double>(moving) * momentum + towards * (1.0 - momentum));
  };
  parallel_ranges(c, channel_block, [&](int64_t begin, int64_t end) {
    double means[channel_block] = {}, squares[channel_block] = {};
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      const double share = static_cast<double>(chunks.rows(chunk)) / n;
      const double* const of_mean = chunks.doubles_of(sums, chunk);
      for (int64_t i = begin; i < end; ++i) means[i - begin] += share * of_mean[i];
    }
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      const double count = static_cast<double>(chunks.rows(chunk));
      const double* const of_mean = chunks.doubles_of(sums, chunk);
      for (int64_t i = begin; i < end; ++i) {
        const double off = of_mean[i] - means[i - begin];
        squares[i - begin] += of_mean[c + i] + count * off * off;
      }
    }
    for (int64_t i = begin; i < end; ++i) {
      const double variance = squares[i - begin] / n;
      const double one_over = 1.0 / sqrt(variance + epsilon);
      mean[i] = static_cast<float>(means[i - begin]);
      inverse[i] = static_cast<float>(one_over);
      scale[i] = static_cast<float>(gamma_of(gamma, i) * one_over);
      move(moving_mean[i], means[i - begin]);
      move(moving_variance[i], variance);
    }
  });
  normalize(rows, c, x, mean, scale, beta, y);
}

void batch_norm_backward(int64_t rows, int64_t c, const float* dy, const float* x,
                         const float* gamma, const float* mean, const float* inverse, float* dx,
                         float* dgamma, float* dbeta) {
  const Chunks chunks(rows, c);
  Scratch memory;
  // dx = (dy - shift - (x - mean) * slope) * scale
  const int64_t shift_at = memory.reserve<float>(c), slope_at = memory.reserve<float>(c);
  const int64_t scale_at = memory.reserve<float>(c);
  const int64_t sums_at = memory.reserve<double>(chunks.doubles());
  memory.allocate();
  float* const shift = memory.at<float>(shift_at);
  float* const slope = memory.at<float>(slope_at);
  float* const scale = memory.at<float>(scale_at);
  double* const sums = memory.at<double>(sums_at);
  chunks.in_parallel([&](int64_t chunk, int64_t begin, int64_t end) {
    double* const of_chunk = chunks.doubles_of(sums, chunk);
    const int64_t at = chunks.begin(chunk);
    gradient_sums(chunks.rows(chunk), c, begin, end, dy + at, x + at, mean, of_chunk, of_chunk + c);
  });

  const double n = static_cast<double>(max(rows, 1));
  parallel_ranges(c, channel_block, [&](int64_t begin, int64_t end) {
    double of_dy[channel_block] = {}, of_product[channel_block] = {};
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      const double* const of_chunk = chunks.doubles_of(sums, chunk);
      for (int64_t i = begin; i < end; ++i) {
        of_dy[i - begin] += of_chunk[i];
        of_product[i - begin] += of_chunk[c + i];
      }
    }
    for (int64_t i = begin; i < end; ++i) {
      const double one_over = static_cast<double>(inverse[i]);
      const double for_gamma = of_product[i - begin] * one_over;
      dbeta[i] = static_cast<float>(of_dy[i - begin]);
      dgamma[i] = static_cast<float>(for_gamma);
      shift[i] = static_cast<float>(of_dy[i - begin] / n);
      slope[i] = static_cast<float>(for_gamma * one_over / n);
      scale[i] = static_cast<float>(gamma_of(gamma, i) * one_over);
    }
  });

  chunks.in_parallel([&](int64_t chunk, int64_t begin, int64_t end) {
    for_tile(chunks.rows(chunk), begin, end,
             [&](auto group, int64_t channel, int64_t part, int64_t row, int64_t last) {
               constexpr int vectors = decltype(group)::count;
               vec center[vectors], off[vectors], k[vectors], factor[vectors];
               for (int v = 0; v < vectors; ++v) {
                 const int64_t i = channel + v * lanes;
                 center[v] = load_part(mean + i, part), off[v] = load_part(shift + i, part);
                 k[v] = load_part(slope + i, part), factor[v] = load_part(scale + i, part);
               }
               for (; row < last; ++row) {
                 for (int v = 0; v < vectors; ++v) {
                   const int64_t at = chunks.begin(chunk) + row * c + channel + v * lanes;
                   const vec d = sub(load_part(x + at, part), center[v]);
                   const vec g = sub(load_part(dy + at, part), off[v]);
                   store_part(dx + at, mul(fnmadd(d, k[v], g), factor[v]), part);
                 }
               }
             });
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
