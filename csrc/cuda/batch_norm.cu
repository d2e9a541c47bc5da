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
// A block works on 32 channels, a lane each, and 8 rows at a time, a warp each: rows lie one after
// the other in memory. For the sums, rows are cut into splits, whose number depends on the shape
// only. A block takes the mean of a chunk of its split, then the sum of squares around it, which so
// loses nothing to cancellation. Chunks, and by a second kernel splits, are combined in their
// order, in double. No atomics: the same bits on every device. (T. Chan, G. Golub, R. LeVeque,
// "Algorithms for computing the sample variance", The American Statistician 37, 1983.)
#include "launch.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256, warps = threads / warp_size;
// Enough blocks for any device; a finishing block sums up to 256 / 8 values a thread.
constexpr int64_t least_rows = 64, most_splits = 256, most_blocks = 65535;
constexpr int64_t chunk_rows = 128;  // 16 KB of 32 channels

// The rows of a block: a split of all.
struct Split {
  int64_t rows, c;
  int64_t each;  // rows of a split, but for the last

  int count() const { return static_cast<int>(ceil_div(rows, each)); }
  dim3 grid() const {
    return dim3(static_cast<unsigned>(ceil_div<int64_t>(c, warp_size)),
                static_cast<unsigned>(count()));
  }
  __device__ int64_t begin() const { return blockIdx.y * each; }
  __device__ int64_t end() const { return begin() + size(blockIdx.y); }
  __device__ int64_t size(int64_t split) const {
    const int64_t left = rows - split * each;
    return left < each ? left : each;
  }
};

Split split_of(int64_t rows, int64_t c, int64_t most) {
  const int64_t even = ceil_div(rows, most);
  return {rows, c, even < least_rows ? least_rows : even};
}

__device__ __forceinline__ int lane_of_thread() { return threadIdx.x % warp_size; }
__device__ __forceinline__ int warp_of_thread() { return threadIdx.x / warp_size; }
__device__ __forceinline__ int64_t channel_of_thread() {
  return static_cast<int64_t>(blockIdx.x) * warp_size + lane_of_thread();
}

// body(i) for the elements of this thread's channel in the rows [begin, end) that it is to read.
template <class Body>
__device__ __forceinline__ void for_each_row(const Split& s, int64_t begin, int64_t end,
                                             const Body& body) {
  const int64_t channel = channel_of_thread();
  if (channel >= s.c) return;
  for (int64_t row = begin + warp_of_thread(); row < end; row += warps) body(row * s.c + channel);
}
template <class Body>
__device__ __forceinline__ void for_each_row(const Split& s, const Body& body) {
  for_each_row(s, s.begin(), s.end(), body);
}

// The sum over the warps of a channel's values, the same for all of them.
template <class T>
__device__ __forceinline__ T sum_of_warps(T value) {
  __shared__ T values[warps][warp_size];
  __syncthreads();  // the sum before this one has been read
  values[warp_of_thread()][lane_of_thread()] = value;
  __syncthreads();
  T sum = values[0][lane_of_thread()];
  for (int warp = 1; warp < warps; ++warp) sum += values[warp][lane_of_thread()];
  return sum;
}

// body(split, of) for the splits that this warp adds up, where `of` is where they have the value of
// this thread's channel; that of another kind is c further on.
template <class Body>
__device__ __forceinline__ void for_each_split(const Split& s, int splits, const double* partial,
                                               const Body& body) {
  const int64_t channel = channel_of_thread();
  if (channel >= s.c) return;
  for (int64_t split = warp_of_thread(); split < splits; split += warps)
    body(split, partial + 2 * split * s.c + channel);
}

__device__ __forceinline__ void write_partial(const Split& s, double* partial, double first,
                                              double second) {
  const int64_t channel = channel_of_thread();
  if (warp_of_thread() != 0 || channel >= s.c) return;
  double* const to = partial + 2 * blockIdx.y * s.c + channel;
  to[0] = first;
  to[s.c] = second;
}

__device__ __forceinline__ double gamma_of(const float* gamma, int64_t channel) {
  return gamma == nullptr ? 1.0 : static_cast<double>(gamma[channel]);
}

// A split's mean and sum of squares around it: chunk by chunk, so that the second look at a chunk
// finds it in the cache.
__global__ void __launch_bounds__(threads)
    moments_kernel(Split s, const float* __restrict__ x, double* __restrict__ partial) {
  double pivot = 0.0, total = 0.0, squares = 0.0;  // the sums of x - pivot and its square
  for (int64_t begin = s.begin(); begin < s.end(); begin += chunk_rows) {
    const int64_t end = begin + chunk_rows < s.end() ? begin + chunk_rows : s.end();
    const float n = static_cast<float>(end - begin);
    float sum = 0.0f, rest = 0.0f, around = 0.0f;
    for_each_row(s, begin, end, [&](int64_t i) { sum += x[i]; });
    const float center = sum_of_warps(sum) / n;
    for_each_row(s, begin, end, [&](int64_t i) {
      const float d = x[i] - center;
      rest += d;  // what rounding did to the mean
      around += d * d;
    });
    const double off = static_cast<double>(sum_of_warps(rest));
    const double chunk_squares = static_cast<double>(sum_of_warps(around));
    if (begin == s.begin()) pivot = static_cast<double>(center);
    const double gap = static_cast<double>(center) - pivot;
    total += static_cast<double>(n) * gap + off;
    squares += chunk_squares + (2.0 * off + static_cast<double>(n) * gap) * gap;
  }
  const double off = total / static_cast<double>(s.end() - s.begin());
  const double around = squares - total * off;
  // Below 0 by the roundings of equal values; NaN stays NaN.
  write_partial(s, partial, pivot + off, around < 0.0 ? 0.0 : around);
}

__global__ void __launch_bounds__(threads)
    finish_moments_kernel(Split s, int splits, const double* __restrict__ partial,
                          const float* gamma, double momentum, double epsilon,
                          float* __restrict__ moving_mean, float* __restrict__ moving_variance,
                          float* __restrict__ mean, float* __restrict__ inverse,
                          float* __restrict__ scale) {
  const double n = static_cast<double>(s.rows);
  double sum = 0.0, squares = 0.0;
  for_each_split(s, splits, partial, [&](int64_t split, const double* of) {
    sum += static_cast<double>(s.size(split)) * of[0];
  });
  const double center = sum_of_warps(sum) / n;
  for_each_split(s, splits, partial, [&](int64_t split, const double* of) {
    const double off = of[0] - center;
    squares += of[s.c] + static_cast<double>(s.size(split)) * off * off;
  });
  const double variance = sum_of_warps(squares) / n;
  const int64_t channel = channel_of_thread();
  if (warp_of_thread() != 0 || channel >= s.c) return;
  const double one_over = 1.0 / sqrt(variance + epsilon);
  const auto move = [&](float& moving, double towards) {
    moving =
        static_cast<float>(static_cast<double>(moving) * momentum + towards * (1.0 - momentum));
  };
  mean[channel] = static_cast<float>(center);
  inverse[channel] = static_cast<float>(one_over);
  scale[channel] = static_cast<float>(gamma_of(gamma, channel) * one_over);
  move(moving_mean[channel], center);
  move(moving_variance[channel], variance);
}

__global__ void __launch_bounds__(threads)
    scale_kernel(int64_t c, const float* gamma, const float* __restrict__ variance, double epsilon,
                 float* __restrict__ scale) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= c) return;
  scale[i] =
      static_cast<float>(gamma_of(gamma, i) / sqrt(static_cast<double>(variance[i]) + epsilon));
}

// y = (x - mean) * scale + beta, beta may be null.
__global__ void __launch_bounds__(threads)
    normalize_kernel(Split s, const float* x, const float* __restrict__ mean,
                     const float* __restrict__ scale, const float* __restrict__ beta, float* y) {
  const int64_t channel = channel_of_thread();
  if (channel >= s.c) return;
  const float center = mean[channel], factor = scale[channel];
  const float shift = beta == nullptr ? 0.0f : beta[channel];
  for_each_row(s, [&](int64_t i) { y[i] = (x[i] - center) * factor + shift; });
}

// A split's sums of dy and of dy * (x - mean).
__global__ void __launch_bounds__(threads)
    gradient_sums_kernel(Split s, const float* __restrict__ dy, const float* __restrict__ x,
                         const float* __restrict__ mean, double* __restrict__ partial) {
  const int64_t channel = channel_of_thread();
  const float center = channel < s.c ? mean[channel] : 0.0f;
  float sum = 0.0f, product = 0.0f;
  for_each_row(s, [&](int64_t i) {
    sum += dy[i];
    product += dy[i] * (x[i] - center);
  });
  const double of_dy = static_cast<double>(sum_of_warps(sum));
  write_partial(s, partial, of_dy, static_cast<double>(sum_of_warps(product)));
}

// dx = (dy - shift - (x - mean) * slope) * scale
struct Coefficients {
  float *shift, *slope, *scale;
};

__global__ void __launch_bounds__(threads)
    finish_sums_kernel(Split s, int splits, const double* __restrict__ partial, const float* gamma,
                       const float* __restrict__ inverse, float* __restrict__ dgamma,
                       float* __restrict__ dbeta, Coefficients to) {
  double of_dy = 0.0, of_product = 0.0;
  for_each_split(s, splits, partial, [&](int64_t, const double* of) {
    of_dy += of[0];
    of_product += of[s.c];
  });
  of_dy = sum_of_warps(of_dy);
  of_product = sum_of_warps(of_product);
  const int64_t channel = channel_of_thread();
  if (warp_of_thread() != 0 || channel >= s.c) return;
  const double n = static_cast<double>(s.rows), one_over = static_cast<double>(inverse[channel]);
  const double for_gamma = of_product * one_over;
  dbeta[channel] = static_cast<float>(of_dy);
  dgamma[channel] = static_cast<float>(for_gamma);
  to.shift[channel] = static_cast<float>(of_dy / n);
  to.slope[channel] = static_cast<float>(for_gamma * one_over / n);
  to.scale[channel] = static_cast<float>(gamma_of(gamma, channel) * one_over);
}

__global__ void __launch_bounds__(threads)
    gradient_kernel(Split s, const float* dy, const float* __restrict__ x,
                    const float* __restrict__ mean, Coefficients of, float* dx) {
  const int64_t channel = channel_of_thread();
  if (channel >= s.c) return;
  const float center = mean[channel], shift = of.shift[channel];
  const float slope = of.slope[channel], scale = of.scale[channel];
  for_each_row(s, [&](int64_t i) { dx[i] = ((dy[i] - shift) - (x[i] - center) * slope) * scale; });
}

const KernelOf moments_launch{"batch_norm_moments", moments_kernel, threads};
const KernelOf finish_moments_launch{"batch_norm_moments finish", finish_moments_kernel, threads};
const KernelOf scale_launch{"batch_norm_scale", scale_kernel, threads};
const KernelOf normalize_launch{"batch_norm", normalize_kernel, threads};
const KernelOf gradient_sums_launch{"batch_norm_sums", gradient_sums_kernel, threads};
const KernelOf finish_sums_launch{"batch_norm_sums finish", finish_sums_kernel, threads};
const KernelOf gradient_launch{"batch_norm_backward", gradient_kernel, threads};

void normalize(int64_t rows, int64_t c, const float* x, const float* mean, const float* scale,
               const float* beta, float* y) {
  const Split pieces = split_of(rows, c, most_blocks);
  normalize_launch(pieces.grid(), pieces, x, mean, scale, beta, y);
}

}  // namespace

void batch_norm(int64_t rows, int64_t c, const float* x, const float* gamma, const float* beta,
                const float* mean, const float* variance, double epsilon, float* y) {
  if (rows == 0) return;
  const Workspace scale(sizeof(float) * c);
  scale_launch(dim3(static_cast<unsigned>(ceil_div<int64_t>(c, threads))), c, gamma, variance,
               epsilon, scale.at<float>());
  normalize(rows, c, x, mean, scale.at<float>(), beta, y);
}

void batch_norm_training(int64_t rows, int64_t c, const float* x, const float* gamma,
                         const float* beta, double momentum, double epsilon, float* moving_mean,
                         float* moving_variance, float* mean, float* inverse, float* y) {
  const Split s = split_of(rows, c, most_splits);
  const Workspace partial(sizeof(double) * 2 * s.count() * c), scale(sizeof(float) * c);
  moments_launch(s.grid(), s, x, partial.at<double>());
  finish_moments_launch(dim3(s.grid().x), s, s.count(), partial.at<double>(), gamma, momentum,
                        epsilon, moving_mean, moving_variance, mean, inverse, scale.at<float>());
  normalize(rows, c, x, mean, scale.at<float>(), beta, y);
}

void batch_norm_backward(int64_t rows, int64_t c, const float* dy, const float* x,
                         const float* gamma, const float* mean, const float* inverse, float* dx,
                         float* dgamma, float* dbeta) {
  const Split s = split_of(rows, c, most_splits);
  const Workspace partial(sizeof(double) * 2 * s.count() * c), memory(sizeof(float) * 3 * c);
  float* const of = memory.at<float>();
  const Coefficients coefficients{of, of + c, of + 2 * c};
  if (rows > 0) gradient_sums_launch(s.grid(), s, dy, x, mean, partial.at<double>());
  finish_sums_launch(dim3(s.grid().x), s, s.count(), partial.at<double>(), gamma, inverse, dgamma,
                     dbeta, coefficients);
  if (rows == 0) return;
  const Split pieces = split_of(rows, c, most_blocks);
  gradient_launch(pieces.grid(), pieces, dy, x, mean, coefficients, dx);
}

}  // namespace pyconv::cuda
