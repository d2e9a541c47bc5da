// Depthwise convolution, as many groups as channels and a filter each, forward and backward.
//
// Nothing is summed over channels, so a warp's threads take neighbouring channels, four each, of a
// pixel: all accesses are of whole lines. Forward and for the data gradient a thread computes one
// pixel of the result. For the weight gradient a block takes 128 channels and a part of the pixels,
// its warps every eighth of these, and holds the sums of up to nine taps in registers.
#include "conv2d.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256, warp = 32, warps = threads / warp;
constexpr int taps_at_once = 9;

__device__ __forceinline__ float4 load4(const float* p) {
  return __ldg(reinterpret_cast<const float4*>(p));
}
__device__ __forceinline__ void store4(float* p, const float4& v) {
  *reinterpret_cast<float4*>(p) = v;
}
// sum += a * b
__device__ __forceinline__ void add_product(float4& sum, const float4& a, const float4& b) {
  sum.x = fmaf(a.x, b.x, sum.x);
  sum.y = fmaf(a.y, b.y, sum.y);
  sum.z = fmaf(a.z, b.z, sum.z);
  sum.w = fmaf(a.w, b.w, sum.w);
}
__device__ __forceinline__ void add(float4& sum, const float4& v) {
  sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
}

// A pixel of the result and four channels of it.
struct Place {
  int n, i, j, channel;
  __device__ __forceinline__ Place(int64_t index, const Positions& pixels, const Divisor& packs) {
    auto at = static_cast<unsigned>(index);
    const unsigned pixel = packs.divide(at);
    pixels.locate(pixel, n, i, j);
    channel = 4 * static_cast<int>(at);
  }
};

__global__ void __launch_bounds__(threads)
    depthwise_kernel(Taps t, Positions pixels, Divisor packs, const float* __restrict__ x,
                     const float* __restrict__ w, Output out) {
  const int64_t count = static_cast<int64_t>(pixels.count) * packs.divisor;
  for_each_index(count, [&](int64_t index) {
    const Place p(index, pixels, packs);
    const int top = p.i * t.stride_h - t.pad_top, left = p.j * t.stride_w - t.pad_left;
    const int64_t image = static_cast<int64_t>(p.n) * t.h * t.w;
    float4 sum = out.bias == nullptr
                     ? zeros()
                     : make_float4(out.bias[p.channel], out.bias[p.channel + 1],
                                   out.bias[p.channel + 2], out.bias[p.channel + 3]);
    for (int r = 0; r < t.kh; ++r) {
      const int ih = top + r * t.dilation_h;
      if (ih < 0 || ih >= t.h) continue;
#pragma unroll 3
      for (int q = 0; q < t.kw; ++q) {
        const int iw = left + q * t.dilation_w;
        if (iw < 0 || iw >= t.w) continue;
        add_product(sum, load4(x + (image + ih * t.w + iw) * t.c + p.channel),
                    load4(w + (r * t.kw + q) * t.c + p.channel));
      }
    }
    if (out.relu) sum = make_float4(relu_of(sum.x), relu_of(sum.y), relu_of(sum.z), relu_of(sum.w));
    store4(out.y + 4 * index, sum);
  });
}

template <class Source>
__global__ void __launch_bounds__(threads)
    depthwise_data_kernel(Taps t, Positions pixels, Divisor packs, Divisor stride_h,
                          Divisor stride_w, Source dy, const float* __restrict__ w,
                          float* __restrict__ dx) {
  const int64_t count = static_cast<int64_t>(pixels.count) * packs.divisor;
  for_each_index(count, [&](int64_t index) {
    const Place p(index, pixels, packs);
    float4 sum = zeros();
    for (int r = 0; r < t.kh; ++r) {
      const int top = p.i + t.pad_top - r * t.dilation_h;
      if (top < 0) continue;
      auto left_over = static_cast<unsigned>(top);
      const int oh = static_cast<int>(stride_h.divide(left_over));
      if (left_over != 0 || oh >= t.oh) continue;
#pragma unroll 3
      for (int q = 0; q < t.kw; ++q) {
        const int left = p.j + t.pad_left - q * t.dilation_w;
        if (left < 0) continue;
        left_over = static_cast<unsigned>(left);
        const int ow = static_cast<int>(stride_w.divide(left_over));
        if (left_over != 0 || ow >= t.ow) continue;
        add_product(sum, four(dy, p.n, oh, ow, p.channel, true),
                    load4(w + (r * t.kw + q) * t.c + p.channel));
      }
    }
    store4(dx + 4 * index, sum);
  });
}

// Blocks: x for the parts of the pixels, y for those of the channels, z for those of the taps; the
// first of these adds up db too.
template <class Source>
__global__ void __launch_bounds__(threads, 2)
    depthwise_weights_kernel(Taps t, Positions pixels, Source dy, const float* __restrict__ x,
                             float* __restrict__ partial) {
  __shared__ float4 shared[warps][warp];
  const int lane = static_cast<int>(threadIdx.x) % warp, own = static_cast<int>(threadIdx.x) / warp;
  const int channel = 4 * (static_cast<int>(blockIdx.y) * warp + lane);
  const int taps = t.kh * t.kw, first_tap = static_cast<int>(blockIdx.z) * taps_at_once;
  float4 sums[taps_at_once + 1];  // the last one is that of dy
#pragma unroll
  for (int k = 0; k <= taps_at_once; ++k) sums[k] = zeros();

  const auto split = [&](int64_t part) {
    return static_cast<unsigned>(pixels.count * part / gridDim.x);
  };
  const unsigned end = channel < t.c ? split(int64_t{blockIdx.x} + 1) : 0;
  for (unsigned pixel = split(blockIdx.x) + own; pixel < end; pixel += warps) {
    int n, oh, ow;
    pixels.locate(pixel, n, oh, ow);
    const float4 gradient = four(dy, n, oh, ow, channel, true);
    add(sums[taps_at_once], gradient);
    const int top = oh * t.stride_h - t.pad_top, left = ow * t.stride_w - t.pad_left;
    const float* const image = x + static_cast<int64_t>(n) * t.h * t.w * t.c + channel;
    int r = first_tap / t.kw, q = first_tap % t.kw;
#pragma unroll
    for (int k = 0; k < taps_at_once; ++k) {
      const int ih = top + r * t.dilation_h, iw = left + q * t.dilation_w;
      if (first_tap + k < taps && ih >= 0 && ih < t.h && iw >= 0 && iw < t.w)
        add_product(sums[k], gradient, load4(image + static_cast<int64_t>(ih * t.w + iw) * t.c));
      if (++q == t.kw) q = 0, ++r;
    }
  }

  float* const to = partial + static_cast<int64_t>(blockIdx.x) * (taps + 1) * t.c;
#pragma unroll
  for (int k = 0; k <= taps_at_once; ++k) {
    const int row = k == taps_at_once ? taps : first_tap + k;
    const bool wanted = k == taps_at_once ? blockIdx.z == 0 : row < taps;
    shared[own][lane] = sums[k];
    __syncthreads();
    if (own == 0 && channel < t.c && wanted) {
      for (int i = 1; i < warps; ++i) add(sums[k], shared[i][lane]);
      store4(to + static_cast<int64_t>(row) * t.c + channel, sums[k]);
    }
    __syncthreads();
  }
}

const KernelOf forward{"conv2d_depthwise", depthwise_kernel, threads};
template <class Source>
const KernelOf data{"conv2d_depthwise_backward_data", depthwise_data_kernel<Source>, threads,
                    Source::name};
template <class Source>
const KernelOf weights{"conv2d_depthwise_backward_weights", depthwise_weights_kernel<Source>,
                       threads, Source::name};

}  // namespace

void conv2d_depthwise(const Conv2dShape& s, const float* x, const float* w, const Output& output) {
  forward(grid_for(s.n * s.oh * s.ow * s.c / 4, threads), forward_taps(s),
          Positions(s.n, s.oh, s.ow), Divisor(s.c / 4), x, w, output);
}

template <class Source>
void conv2d_depthwise_backward_data(const Conv2dShape& s, const Source& dy, const float* w,
                                    float* dx) {
  data<Source>(grid_for(s.n * s.h * s.w * s.c / 4, threads), forward_taps(s),
               Positions(s.n, s.h, s.w), Divisor(s.c / 4), Divisor(s.stride_h), Divisor(s.stride_w),
               dy, w, dx);
}

template <class Source>
void conv2d_depthwise_backward_weights(const Conv2dShape& s, const Source& dy, const float* x,
                                       float* dw, float* db) {
  const int64_t taps = s.kh * s.kw;
  const auto channels = static_cast<unsigned>(ceil_div<int64_t>(s.c, 4 * warp));
  const auto tap_parts = static_cast<unsigned>(ceil_div<int64_t>(taps, taps_at_once));
  const int64_t splits = weight_splits(s, int64_t{channels} * tap_parts);
  const Workspace partial(sizeof(float) * splits * (taps + 1) * s.c);
  weights<Source>(dim3(static_cast<unsigned>(splits), channels, tap_parts), forward_taps(s),
                  Positions(s.n, s.oh, s.ow), dy, x, partial.at<float>());
  sum_partials(s, splits, partial.at<float>(), dw, db);
}

#define PYCONV_INSTANTIATE(Source)                                                                 \
  template void conv2d_depthwise_backward_data(const Conv2dShape&, const Source&, const float*,    \
                                               float*);                                            \
  template void conv2d_depthwise_backward_weights(const Conv2dShape&, const Source&, const float*, \
                                                  float*, float*);
PYCONV_INSTANTIATE(Plain)
PYCONV_INSTANTIATE(Masked)
#undef PYCONV_INSTANTIATE

}  // namespace pyconv::cuda
