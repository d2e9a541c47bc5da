// Convolution of any shape, forward and backward: one thread a result, the definition written down.
// Slow, and what the other kernels fall back to: groups, strides in the data gradient, channels
// that are no multiple of 4, arrays beyond 2^31 pixels.
#include "conv2d.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;

// The convolution at one position and filter, bias included.
__device__ float sum_of_taps(const Conv2dShape& s, const float* x, const float* w,
                             const float* bias, int64_t n, int64_t oh, int64_t ow, int64_t f) {
  const int64_t depth = s.c / s.groups, first = f / (s.oc / s.groups) * depth;
  float sum = bias != nullptr ? bias[f] : 0.0f;
  for (int64_t r = 0; r < s.kh; ++r) {
    const int64_t ih = oh * s.stride_h - s.pad_top + r * s.dilation_h;
    if (ih < 0 || ih >= s.h) continue;
    for (int64_t q = 0; q < s.kw; ++q) {
      const int64_t iw = ow * s.stride_w - s.pad_left + q * s.dilation_w;
      if (iw < 0 || iw >= s.w) continue;
      const float* const pixel = x + ((n * s.h + ih) * s.w + iw) * s.c + first;
      const float* const tap = w + (r * s.kw + q) * depth * s.oc + f;
      for (int64_t k = 0; k < depth; ++k) sum += pixel[k] * tap[k * s.oc];
    }
  }
  return sum;
}

__global__ void __launch_bounds__(threads) direct_kernel(Conv2dShape s, const float* __restrict__ x,
                                                         const float* __restrict__ w, Output out) {
  for_each_index(s.n * s.oh * s.ow * s.oc, [&](int64_t i) {
    const int64_t f = i % s.oc, ow = i / s.oc % s.ow, oh = i / s.oc / s.ow % s.oh;
    const float sum = sum_of_taps(s, x, w, out.bias, i / s.oc / s.ow / s.oh, oh, ow, f);
    out.y[i] = out.relu ? relu_of(sum) : sum;
  });
}

__global__ void __launch_bounds__(threads, 3)
    direct_pool_kernel(Conv2dShape s, const float* __restrict__ x, const float* __restrict__ w,
                       PooledOutput out) {
  const uint64_t offset = get(out.dropout.offset);
  for_each_index(s.n * out.ph * out.pw * s.oc, [&](int64_t i) {
    const int64_t f = i % s.oc, ow = i / s.oc % out.pw, oh = i / s.oc / out.pw % out.ph;
    const int64_t n = i / s.oc / out.pw / out.ph;
    float window[4];
    for (int q = 0; q < 4; ++q)
      window[q] = sum_of_taps(s, x, w, out.bias, n, 2 * oh + q / 2, 2 * ow + q % 2, f);
    unsigned word = ~0u;
    if (out.dropout.threshold > 0) {
      const uint4 words =
          philox4x32_10(out.dropout.first + static_cast<uint64_t>(i) / 4, offset, out.dropout.seed);
      word = i % 4 == 0 ? words.x : i % 4 == 1 ? words.y : i % 4 == 2 ? words.z : words.w;
    }
    finish_window(out.dropout, word, window, out.y[i], out.winner[i]);
  });
}

template <class Source>
__global__ void __launch_bounds__(threads, 3)
    direct_data_kernel(Conv2dShape s, Source dy, const float* __restrict__ w,
                       float* __restrict__ dx) {
  const int64_t depth = s.c / s.groups, filters = s.oc / s.groups;
  for_each_index(s.n * s.h * s.w * s.c, [&](int64_t i) {
    const int64_t c = i % s.c, iw = i / s.c % s.w, ih = i / s.c / s.w % s.h;
    const int64_t n = i / s.c / s.w / s.h, first = c / depth * filters;
    float sum = 0.0f;
    for (int64_t r = 0; r < s.kh; ++r) {
      const int64_t top = ih + s.pad_top - r * s.dilation_h;
      if (top < 0 || top % s.stride_h != 0 || top / s.stride_h >= s.oh) continue;
      for (int64_t q = 0; q < s.kw; ++q) {
        const int64_t left = iw + s.pad_left - q * s.dilation_w;
        if (left < 0 || left % s.stride_w != 0 || left / s.stride_w >= s.ow) continue;
        const float* const tap = w + ((r * s.kw + q) * depth + c % depth) * s.oc + first;
        for (int64_t f = 0; f < filters; ++f) {
          sum += dy.at(static_cast<int>(n), static_cast<int>(top / s.stride_h),
                       static_cast<int>(left / s.stride_w), static_cast<int>(first + f)) *
                 tap[f];
        }
      }
    }
    dx[i] = sum;
  });
}

// Sums over the pixels of one split; behind the elements of dw come those of db.
template <class Source>
__global__ void __launch_bounds__(threads, 3)
    direct_weights_kernel(Conv2dShape s, Source dy, const float* __restrict__ x, int64_t splits,
                          float* __restrict__ partial) {
  const int64_t depth = s.c / s.groups, filters = s.oc / s.groups;
  const int64_t weights = s.kh * s.kw * depth * s.oc, elements = weights + s.oc;
  const int64_t pixels = s.n * s.oh * s.ow;
  for_each_index(splits * elements, [&](int64_t i) {
    const int64_t split = i / elements, element = i % elements, f = element % s.oc;
    const bool is_bias = element >= weights;
    const int64_t tap = element / s.oc / depth, c = f / filters * depth + element / s.oc % depth;
    const int64_t dh = tap / s.kw * s.dilation_h - s.pad_top;
    const int64_t dw = tap % s.kw * s.dilation_w - s.pad_left;
    float sum = 0.0f;
    const int64_t end = pixels * (split + 1) / splits;
    for (int64_t p = pixels * split / splits; p < end; ++p) {
      const int64_t ow = p % s.ow, oh = p / s.ow % s.oh, n = p / s.ow / s.oh;
      float factor = 1.0f;
      if (!is_bias) {
        const int64_t ih = oh * s.stride_h + dh, iw = ow * s.stride_w + dw;
        if (ih < 0 || ih >= s.h || iw < 0 || iw >= s.w) continue;
        factor = x[((n * s.h + ih) * s.w + iw) * s.c + c];
      }
      sum += factor * dy.at(static_cast<int>(n), static_cast<int>(oh), static_cast<int>(ow),
                            static_cast<int>(f));
    }
    partial[i] = sum;
  });
}

// A block adds up 32 elements. Its eight warps share the splits out among them, a run of neighbours
// each, and the first adds up what they have.
constexpr int sum_threads = 256, sum_parts = sum_threads / warp_size;

__global__ void __launch_bounds__(sum_threads)
    sum_partials_kernel(int64_t weights, int64_t elements, int splits,
                        const float* __restrict__ partial, float* __restrict__ dw,
                        float* __restrict__ db) {
  __shared__ float sums[sum_parts][warp_size];
  const int lane = threadIdx.x % warp_size, part = threadIdx.x / warp_size;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * warp_size + lane;
  float sum = 0.0f;
  if (i < elements) {
    const int end = splits * (part + 1) / sum_parts;
#pragma unroll 8
    for (int split = splits * part / sum_parts; split < end; ++split)
      sum += partial[split * elements + i];
  }
  sums[part][lane] = sum;
  __syncthreads();
  if (part != 0 || i >= elements) return;
  for (int other = 1; other < sum_parts; ++other) sum += sums[other][lane];
  if (i < weights) {
    dw[i] = sum;
  } else if (db != nullptr) {
    db[i - weights] = sum;
  }
}

const KernelOf forward{"conv2d_direct", direct_kernel, threads};
const KernelOf forward_pool{"conv2d_direct_pool", direct_pool_kernel, threads};
const KernelOf total{"conv2d_sum_partials", sum_partials_kernel, sum_threads};

template <class Source>
const KernelOf data{"conv2d_direct_backward_data", direct_data_kernel<Source>, threads,
                    Source::name};
template <class Source>
const KernelOf weights{"conv2d_direct_backward_weights", direct_weights_kernel<Source>, threads,
                       Source::name};

}  // namespace

void conv2d_direct(const Conv2dShape& s, const float* x, const float* w, const Output& output) {
  forward(grid_for(s.n * s.oh * s.ow * s.oc, threads), s, x, w, output);
}

void conv2d_direct(const Conv2dShape& s, const float* x, const float* w,
                   const PooledOutput& output) {
  forward_pool(grid_for(s.n * output.ph * output.pw * s.oc, threads), s, x, w, output);
}

template <class Source>
void conv2d_direct_backward_data(const Conv2dShape& s, const Source& dy, const float* w,
                                 float* dx) {
  data<Source>(grid_for(s.n * s.h * s.w * s.c, threads), s, dy, w, dx);
}

template <class Source>
void conv2d_direct_backward_weights(const Conv2dShape& s, const Source& dy, const float* x,
                                    float* dw, float* db) {
  const int64_t elements = (s.kh * s.kw * (s.c / s.groups) + 1) * s.oc;
  const int64_t splits = weight_splits(s, ceil_div<int64_t>(elements, threads));
  const Workspace partial(sizeof(float) * splits * elements);
  weights<Source>(grid_for(splits * elements, threads), s, dy, x, splits, partial.at<float>());
  sum_partials(s, splits, partial.at<float>(), dw, db);
}

int64_t weight_splits(const Conv2dShape& s, int64_t blocks_a_split) {
  // Depends on the shape only, lest the sums' order depend on the device: about four blocks for
  // each multiprocessor of a large one, and at least 128 pixels a split.
  constexpr int64_t wanted_blocks = 4 * 132, least_pixels = 128;
  const int64_t pixels = s.n * s.oh * s.ow;
  const int64_t splits = wanted_blocks / (blocks_a_split > 0 ? blocks_a_split : 1);
  const int64_t most = pixels / least_pixels;
  const int64_t chosen = splits < most ? splits : most;
  return chosen > 1 ? chosen : 1;
}

void sum_partials(const Conv2dShape& s, int64_t splits, const float* partial, float* dw,
                  float* db) {
  const int64_t count = s.kh * s.kw * (s.c / s.groups) * s.oc;
  const int64_t elements = count + s.oc;
  total(dim3(static_cast<unsigned>(ceil_div<int64_t>(elements, warp_size))), count, elements,
        static_cast<int>(splits), partial, dw, db);
}

#define PYCONV_INSTANTIATE(Source)                                                              \
  template void conv2d_direct_backward_data(const Conv2dShape&, const Source&, const float*,    \
                                            float*);                                            \
  template void conv2d_direct_backward_weights(const Conv2dShape&, const Source&, const float*, \
                                               float*, float*);
PYCONV_INSTANTIATE(Plain)
PYCONV_INSTANTIATE(Masked)
PYCONV_INSTANTIATE(Pooled)
#undef PYCONV_INSTANTIATE

}  // namespace pyconv::cuda
