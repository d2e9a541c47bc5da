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
// the result. For the sums, rows are cut into chunks that stay in a cache, by the shape alone. A
// chunk's mean is taken first, then the sum of squares around it, which so loses nothing to
// cancellation; what rounding did to the mean is taken out again. Chunks are combined in their
// order, in double: so no bit depends on the threads. (T. Chan, G. Golub, R. LeVeque, "Algorithms
// for computing the sample variance", The American Statistician 37, 1983.)
#include <math.h>

#include "operations.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// A chunk has at most so many values, and rows, where it has more than one: float sums are short.
constexpr int64_t chunk_values = 16 * 1024, chunk_rows = 512;
constexpr int64_t channel_block = 64;

// The rows as chunks, each with two doubles a channel.
class Chunks {
 public:
  Chunks(int64_t rows, int64_t c)
      : rows_(rows),
        c_(c),
        each_(max(1, min(chunk_rows, chunk_values / c))),
        count_(ceil_div(rows, each_)) {}

  int64_t count() const { return count_; }
  int64_t rows(int64_t chunk) const { return min(each_, rows_ - chunk * each_); }
  int64_t begin(int64_t chunk) const { return chunk * each_ * c_; }  // first value
  int64_t values() const { return 2 * count_ * c_; }
  double* values_of(double* all, int64_t chunk) const { return all + 2 * chunk * c_; }

  // body(chunk) on all threads.
  template <class Body>
  void in_parallel(const Body& body) const {
    parallel_for(num_threads(), count_, [&](int64_t chunk, int) { body(chunk); });
  }

 private:
  int64_t rows_, c_, each_, count_;
};

template <int n>
struct Vectors {
  static constexpr int count = n;
};

// body(Vectors<n>, first, part) for the channels from `first` on: n whole vectors, or a part of
// one. So that sums stay in registers while the rows pass by.
template <class Body>
void for_channels(int64_t c, const Body& body) {
  int64_t first = 0;
  for (; first + 4 * lanes <= c; first += 4 * lanes) body(Vectors<4>(), first, int64_t{lanes});
  for (; first < c; first += lanes) body(Vectors<1>(), first, min(lanes, c - first));
}

// The mean, and the sum of squares around it.
void moments(int64_t rows, int64_t c, const float* x, double* mean, double* squares) {
  const double n = static_cast<double>(rows);
  const vec share = broadcast(static_cast<float>(1.0 / n));
  for_channels(c, [&](auto group, int64_t first, int64_t part) {
    constexpr int vectors = decltype(group)::count;
    vec center[vectors], sum[vectors], square[vectors];
    for (int v = 0; v < vectors; ++v) center[v] = sum[v] = square[v] = zero();
    for (int64_t row = 0; row < rows; ++row) {
      const float* const at = x + row * c + first;
      for (int v = 0; v < vectors; ++v) center[v] = add(center[v], load_part(at + v * lanes, part));
    }
    for (int v = 0; v < vectors; ++v) center[v] = mul(center[v], share);
    for (int64_t row = 0; row < rows; ++row) {
      const float* const at = x + row * c + first;
      for (int v = 0; v < vectors; ++v) {
        const vec d = sub(load_part(at + v * lanes, part), center[v]);
        sum[v] = add(sum[v], d);
        square[v] = fmadd(d, d, square[v]);
      }
    }
    for (int v = 0; v < vectors; ++v) {
      float around[lanes], rest[lanes], found[lanes];
      store(around, center[v]);
      store(rest, sum[v]);
      store(found, square[v]);
      for (int64_t i = 0; i < part; ++i) {
        const double off = static_cast<double>(rest[i]) / n;
        mean[first + v * lanes + i] = static_cast<double>(around[i]) + off;
        squares[first + v * lanes + i] =
            static_cast<double>(found[i]) - static_cast<double>(rest[i]) * off;
      }
    }
  });
}

// The sums of dy and of dy * (x - mean).
void gradient_sums(int64_t rows, int64_t c, const float* dy, const float* x, const float* mean,
                   double* of_dy, double* of_product) {
  for_channels(c, [&](auto group, int64_t first, int64_t part) {
    constexpr int vectors = decltype(group)::count;
    vec center[vectors], sum[vectors], product[vectors];
    for (int v = 0; v < vectors; ++v) {
      center[v] = load_part(mean + first + v * lanes, part);
      sum[v] = product[v] = zero();
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = row * c + first;
      for (int v = 0; v < vectors; ++v) {
        const vec g = load_part(dy + at + v * lanes, part);
        sum[v] = add(sum[v], g);
        product[v] = fmadd(g, sub(load_part(x + at + v * lanes, part), center[v]), product[v]);
      }
    }
    for (int v = 0; v < vectors; ++v) {
      float sums[lanes], products[lanes];
      store(sums, sum[v]);
      store(products, product[v]);
      for (int64_t i = 0; i < part; ++i) {
        of_dy[first + v * lanes + i] = static_cast<double>(sums[i]);
        of_product[first + v * lanes + i] = static_cast<double>(products[i]);
      }
    }
  });
}

// y = (x - mean) * scale + beta, beta may be null.
void normalize(int64_t rows, int64_t c, const float* x, const float* mean, const float* scale,
               const float* beta, float* y) {
  const Chunks chunks(rows, c);
  chunks.in_parallel([&](int64_t chunk) {
    for_channels(c, [&](auto group, int64_t first, int64_t part) {
      constexpr int vectors = decltype(group)::count;
      vec center[vectors], factor[vectors], shift[vectors];
      for (int v = 0; v < vectors; ++v) {
        center[v] = load_part(mean + first + v * lanes, part);
        factor[v] = load_part(scale + first + v * lanes, part);
        shift[v] = beta == nullptr ? zero() : load_part(beta + first + v * lanes, part);
      }
      for (int64_t row = 0; row < chunks.rows(chunk); ++row) {
        const int64_t at = chunks.begin(chunk) + row * c + first;
        for (int v = 0; v < vectors; ++v) {
          const vec d = sub(load_part(x + at + v * lanes, part), center[v]);
          store_part(y + at + v * lanes, fmadd(d, factor[v], shift[v]), part);
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
  const int64_t sums_at = memory.reserve<double>(chunks.values());
  memory.allocate();
  float* const scale = memory.at<float>(scale_at);
  double* const sums = memory.at<double>(sums_at);
  chunks.in_parallel([&](int64_t chunk) {
    double* const of_chunk = chunks.values_of(sums, chunk);
    moments(chunks.rows(chunk), c, x + chunks.begin(chunk), of_chunk, of_chunk + c);
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
      const double* const of_mean = chunks.values_of(sums, chunk);
      for (int64_t i = begin; i < end; ++i) means[i - begin] += share * of_mean[i];
    }
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      const double count = static_cast<double>(chunks.rows(chunk));
      const double* const of_mean = chunks.values_of(sums, chunk);
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
  const int64_t sums_at = memory.reserve<double>(chunks.values());
  memory.allocate();
  float* const shift = memory.at<float>(shift_at);
  float* const slope = memory.at<float>(slope_at);
  float* const scale = memory.at<float>(scale_at);
  double* const sums = memory.at<double>(sums_at);
  chunks.in_parallel([&](int64_t chunk) {
    double* const of_chunk = chunks.values_of(sums, chunk);
    const int64_t at = chunks.begin(chunk);
    gradient_sums(chunks.rows(chunk), c, dy + at, x + at, mean, of_chunk, of_chunk + c);
  });

  const double n = static_cast<double>(max(rows, 1));
  parallel_ranges(c, channel_block, [&](int64_t begin, int64_t end) {
    double of_dy[channel_block] = {}, of_product[channel_block] = {};
    for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
      const double* const of_chunk = chunks.values_of(sums, chunk);
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

  chunks.in_parallel([&](int64_t chunk) {
    for_channels(c, [&](auto group, int64_t first, int64_t part) {
      constexpr int vectors = decltype(group)::count;
      vec center[vectors], off[vectors], k[vectors], factor[vectors];
      for (int v = 0; v < vectors; ++v) {
        const int64_t channel = first + v * lanes;
        center[v] = load_part(mean + channel, part), off[v] = load_part(shift + channel, part);
        k[v] = load_part(slope + channel, part), factor[v] = load_part(scale + channel, part);
      }
      for (int64_t row = 0; row < chunks.rows(chunk); ++row) {
        for (int v = 0; v < vectors; ++v) {
          const int64_t at = chunks.begin(chunk) + row * c + first + v * lanes;
          const vec d = sub(load_part(x + at, part), center[v]);
          const vec g = sub(load_part(dy + at, part), off[v]);
          store_part(dx + at, mul(fnmadd(d, k[v], g), factor[v]), part);
        }
      }
    });
  });
}

}  // namespace pyconv::cpu::PYCONV_ISA
