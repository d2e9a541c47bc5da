// The end of a backward pass: the gradient goes through the second layer, a convolution with
// pooling, to the weights of the first, a convolution.
//
// Nobody else needs the gradient between the two layers, which is the largest of a network: writing
// it and reading it again takes longer than what the first layer computes from it. So a few images
// at a time go through both, on one thread, and it never leaves that core's cache.
//
// Deterministic: the first layer's gradients are sums over blocks of images, whose size depends on
// the shape only, and over chunks of blocks, in their order.
#include "conv2d.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// Of the gradient between the layers, in a block of images.
constexpr int64_t block_bytes = 576 * 1024;
constexpr int64_t max_chunks = 64;
// Fewer blocks would keep too few threads busy. So small a gradient may be written out.
constexpr int64_t least_blocks = 16;

}  // namespace

void conv2d_pool_backward_through(const ConvPoolShape& second, float scale, const float* dy,
                                  const uint8_t* winner, const float* w, const Conv2dShape& first,
                                  Activation activation, const float* y, const float* x, float* dw,
                                  float* db) {
  const int64_t image = first.oh * first.ow * first.oc;  // of the gradient between
  const int64_t pooled = second.ph * second.pw * second.conv.oc;
  const int64_t input = first.h * first.w * first.c;
  const int64_t images = max(1, min(first.n, block_bytes / (image * float_bytes)));
  const int64_t blocks = ceil_div(first.n, images);
  Scratch memory;
  if (blocks < least_blocks) {
    const int64_t dx_at = memory.reserve<float>(first.n * image);
    memory.allocate(ScratchUse::sequence);
    float* const dx = memory.at<float>(dx_at);
    conv2d_pool_backward_data(second, scale, dy, winner, w, dx);
    conv2d_backward_weights(first, activation, dx, y, x, dw, db);
    return;
  }

  const int threads = num_threads();
  const int64_t chunks = min(blocks, max_chunks);
  const int64_t weights = first.kh * first.kw * (first.c / first.groups) * first.oc;
  const int64_t size = ceil_div(weights + first.oc, lanes) * lanes;  // of dw, then db
  const int64_t sums_at = memory.reserve<float>(chunks * size);
  const int64_t dx_at = memory.reserve<float>(threads * images * image);
  const int64_t block_at = memory.reserve<float>(threads * size);
  memory.allocate(ScratchUse::sequence);
  float* const all_sums = memory.at<float>(sums_at);
  KeptWeights& kept = kept_for_one_call();
  kept.images = images;

  parallel_for(threads, chunks, [&](int64_t chunk, int worker) {
    const OneThread alone;
    float* const sums = all_sums + chunk * size;
    float* const dx = memory.at<float>(dx_at) + worker * images * image;
    const int64_t begin = part_begin(blocks, chunks, chunk);
    const int64_t end = part_begin(blocks, chunks, chunk + 1);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t at = block * images;
      ConvPoolShape some_second = second;
      Conv2dShape some_first = first;
      some_second.conv.n = some_first.n = min(images, first.n - at);
      {
        const KeptWeights::Use use(&kept);
        conv2d_pool_backward_data(some_second, scale, dy + at * pooled, winner + at * pooled, w,
                                  dx);
      }
      float* const to = block == begin ? sums : memory.at<float>(block_at) + worker * size;
      conv2d_backward_weights(some_first, activation, dx, y + at * image, x + at * input, to,
                              to + weights);
      if (to != sums) add_arrays(sums, to, 1, 0, 0, weights + first.oc);
    }
  });

  parallel_ranges(weights + first.oc, 4 * 1024, [&](int64_t begin, int64_t end) {
    add_arrays(all_sums, all_sums + size, chunks - 1, size, begin, end);
  });
  copy(dw, all_sums, weights);
  copy(db, all_sums + weights, first.oc);
}

}  // namespace pyconv::cpu::PYCONV_ISA
