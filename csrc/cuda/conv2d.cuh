// What the convolution kernels share: the shapes as they see them, the places that gradients come
// from, and the conditions under which the fast ones apply.
//
//   conv2d.cu          the entries of ops.hpp: choose a kernel
//   conv2d_direct.cu   any shape: one thread a result
//   conv2d_gemm.cu     forward and data gradient: implicit matrix product in float32
//   conv2d_tf32.cu     the same for 3x3 kernels on tensor cores
//   conv2d_weights.cu  weight gradient: split over pixels, summed in a fixed order
//   conv2d_tf32_weights.cu  the same for 3x3 kernels on tensor cores
//   conv2d_first.cu    3x3 kernels on 3 channels
#pragma once

#include "launch.cuh"
#include "philox.cuh"
#include "shared_tiles.hpp"

namespace pyconv::cuda {

// Division of numbers below 2^31 by a constant: T. Granlund, P. Montgomery, "Division by invariant
// integers using multiplication", PLDI 1994, section 4.
struct Divisor {
  unsigned divisor, multiplier, shift;

  __host__ explicit Divisor(int64_t value) : divisor(static_cast<unsigned>(value)), shift(0) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    const uint64_t two = uint64_t{1} << 32;
    multiplier = static_cast<unsigned>(two * ((uint64_t{1} << shift) - divisor) / divisor + 1);
  }
  __device__ __forceinline__ unsigned quotient(unsigned n) const {
    return (__umulhi(n, multiplier) + n) >> shift;
  }
  // n becomes the remainder.
  __device__ __forceinline__ unsigned divide(unsigned& n) const {
    const unsigned q = quotient(n);
    n -= q * divisor;
    return q;
  }
};

// A sum over taps as the fast kernels see it, in 32 bits: forward, or the data gradient with the
// roles of x and y exchanged.
struct Taps {
  int h, w, c;     // source [n, h, w, c]
  int oh, ow, oc;  // result [n, oh, ow, oc]
  int kh, kw;
  int stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
};

// Positions of an image batch [n, rows, columns], numbered.
struct Positions {
  unsigned count;
  Divisor image, row;

  __host__ Positions(int64_t n, int64_t rows, int64_t columns)
      : count(static_cast<unsigned>(n * rows * columns)), image(rows * columns), row(columns) {}
  __device__ __forceinline__ void locate(unsigned index, int& n, int& i, int& j) const {
    n = static_cast<int>(image.divide(index));
    i = static_cast<int>(row.divide(index));
    j = static_cast<int>(index);
  }
};

__device__ __forceinline__ float4 zeros() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }

// ---------------------------------------------------------------------------------------------
// Sources: where the values that a kernel sums over come from. at() gives one value, of a position
// inside the image. read() loads what those of channels k to k + 3 are made of, and value() makes
// them, zeros where not valid: between the two go multiplications, so that nobody waits for memory.
// Offsets are below 2^31 where valid (fits_32_bits in conv2d.cu), anything at all elsewhere.

// Loads where the code says so; anything at all where not valid. The compiler would move an
// ordinary load down to its first use, behind the multiplications that are to hide how long it
// takes.
__device__ __forceinline__ float4 load_early(const float* global, bool valid) {
  float4 v;
  asm volatile(
      "{ .reg .pred valid;\n"
      "setp.ne.b32 valid, %5, 0;\n"
      "@valid ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4]; }"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "l"(global), "r"(static_cast<int>(valid))
      : "memory");
  return v;
}

// The same; zeros where not valid.
__device__ __forceinline__ float4 load_early_or_zeros(const float* global, bool valid) {
  float4 v = zeros();
  asm volatile(
      "{ .reg .pred valid;\n"
      "setp.ne.b32 valid, %5, 0;\n"
      "@valid ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4]; }"
      : "+f"(v.x), "+f"(v.y), "+f"(v.z), "+f"(v.w)
      : "l"(global), "r"(static_cast<int>(valid))
      : "memory");
  return v;
}

// Four bytes; `otherwise` where not valid.
__device__ __forceinline__ unsigned load_early(const uint8_t* global, bool valid,
                                               unsigned otherwise) {
  asm volatile(
      "{ .reg .pred valid;\n"
      "setp.ne.b32 valid, %2, 0;\n"
      "@valid ld.global.nc.u32 %0, [%1]; }"
      : "+r"(otherwise)
      : "l"(global), "r"(static_cast<int>(valid))
      : "memory");
  return otherwise;
}

// An array as it is: x, or dy without ReLU.
struct Plain {
  static constexpr const char* name = "";
  const float* data;
  int h, w, c;

  __device__ __forceinline__ int64_t offset(int n, int i, int j, int k) const {
    return ((static_cast<int64_t>(n) * h + i) * w + j) * c + k;
  }
  __device__ __forceinline__ float at(int n, int i, int j, int k) const {
    return data[offset(n, i, j, k)];
  }
  using Raw = float4;
  __device__ __forceinline__ Raw read(unsigned at, bool valid) const {
    return load_early_or_zeros(data + at, valid);
  }
  __device__ __forceinline__ Raw read(int n, int i, int j, int k, bool valid) const {
    return read(static_cast<unsigned>(offset(n, i, j, k)), valid);
  }
  __device__ __forceinline__ float4 value(const Raw& raw) const { return raw; }
};

// dy where the forward pass's output y is positive.
struct Masked {
  static constexpr const char* name = " (ReLU)";
  Plain dy;
  const float* y;

  __device__ __forceinline__ float at(int n, int i, int j, int k) const {
    const int64_t offset = dy.offset(n, i, j, k);
    return y[offset] > 0.0f ? dy.data[offset] : 0.0f;
  }
  struct Raw {
    float4 dy, y;
    bool valid;
  };
  __device__ __forceinline__ Raw read(unsigned at, bool valid) const {
    return {load_early(dy.data + at, valid), load_early(y + at, valid), valid};
  }
  __device__ __forceinline__ Raw read(int n, int i, int j, int k, bool valid) const {
    return read(static_cast<unsigned>(dy.offset(n, i, j, k)), valid);
  }
  __device__ __forceinline__ float4 value(const Raw& raw) const {
    const auto at = [&](float y, float v) { return raw.valid && y > 0.0f ? v : 0.0f; };
    return make_float4(at(raw.y.x, raw.dy.x), at(raw.y.y, raw.dy.y), at(raw.y.z, raw.dy.z),
                       at(raw.y.w, raw.dy.w));
  }
};

// The gradient behind ReLU, 2x2 max pooling and dropout, never written out: scale * dy of the
// window at its winner, 0 elsewhere.
struct Pooled {
  static constexpr const char* name = " (pooled)";
  Plain dy;  // [n, ph, pw, c]
  const uint8_t* winner;
  float scale;

  __device__ __forceinline__ bool inside(int i, int j) const {
    return (i >> 1) < dy.h && (j >> 1) < dy.w;
  }
  __device__ __forceinline__ float at(int n, int i, int j, int k) const {
    if (!inside(i, j)) return 0.0f;
    const int64_t offset = dy.offset(n, i >> 1, j >> 1, k);
    return winner[offset] == ((i & 1) * 2 + (j & 1)) ? scale * dy.data[offset] : 0.0f;
  }
  struct Raw {
    float4 dy;
    unsigned winners, position;  // four bytes each
  };
  // Four times which position of its window (i, j) is.
  static __device__ __forceinline__ unsigned position(int i, int j) {
    return ((i & 1) * 2 + (j & 1)) * 0x01010101u;
  }
  __device__ __forceinline__ Raw read(unsigned at, unsigned position, bool valid) const {
    return {load_early(dy.data + at, valid),
            load_early(winner + at, valid, pool_dead * 0x01010101u), position};
  }
  __device__ __forceinline__ Raw read(int n, int i, int j, int k, bool valid) const {
    return read(static_cast<unsigned>(dy.offset(n, i >> 1, j >> 1, k)), position(i, j),
                valid && inside(i, j));
  }
  __device__ __forceinline__ float4 value(const Raw& raw) const {
    const unsigned differs = raw.winners ^ raw.position;
    const auto at = [&](int k, float v) {
      return (differs & 255u << (8 * k)) == 0 ? scale * v : 0.0f;
    };
    return make_float4(at(0, raw.dy.x), at(1, raw.dy.y), at(2, raw.dy.z), at(3, raw.dy.w));
  }
};

// The values of channels k to k + 3, or zeros.
template <class Source>
__device__ __forceinline__ float4 four(const Source& source, int n, int i, int j, int k,
                                       bool valid) {
  return valid ? source.value(source.read(n, i, j, k, true)) : zeros();
}

// What becomes of a finished sum.
struct Output {
  const float* bias;  // may be null
  bool relu;
  float* y;
};

// ReLU, 2x2 max pooling and dropout behind it.
struct PooledOutput {
  const float* bias;  // may be null
  float* y;
  uint8_t* winner;
  int ph, pw;
  Dropout dropout;
};

// An element of that output: of the four sums of its window, row by row, biases included, and of
// the element's random word. The first maximum wins ties, NaN wins over numbers.
__device__ __forceinline__ void finish_window(const Dropout& dropout, unsigned word,
                                              const float (&window)[4], float& y, uint8_t& winner) {
  float best = relu_of(window[0]);
  int where = 0;
#pragma unroll
  for (int q = 1; q < 4; ++q) {
    const float value = relu_of(window[q]);
    if (!(value <= best) && best == best) best = value, where = q;
  }
  const bool dropped = word < dropout.threshold;
  y = dropped ? 0.0f : best * dropout.scale;
  winner = static_cast<uint8_t>(dropped || !(best > 0.0f) ? pool_dead : where);
}

// ---------------------------------------------------------------------------------------------
// The kernels, for shapes that supports_*() allows. All arrays are aligned to 16 bytes, winners
// to 4.

// Whether the fast kernels apply: groups of 1, channels in fours, sizes that fit into 32 bits.
bool supports_gemm(const Conv2dShape& shape);
// ... for the data gradient.
bool supports_gemm_backward_data(const Conv2dShape& shape);
bool supports_first(const Conv2dShape& shape);
bool supports_tf32(const Conv2dShape& shape);
// As many groups as channels and filters, in fours.
bool supports_depthwise(const Conv2dShape& shape);

Taps forward_taps(const Conv2dShape& shape);
inline Plain plain_source(const Taps& t, const float* data) { return {data, t.h, t.w, t.c}; }
// The data gradient with strides of 1: dy is the source, the kernel is flipped.
Taps backward_data_taps(const Conv2dShape& shape);

void conv2d_gemm(const Conv2dShape& shape, const float* x, const float* w, const Output& output);
void conv2d_gemm(const Conv2dShape& shape, const float* x, const float* w,
                 const PooledOutput& output);
template <class Source>
void conv2d_gemm_backward_data(const Conv2dShape& shape, const Source& dy, const float* w,
                               float* dx);

void conv2d_tf32(const Conv2dShape& shape, const float* x, const float* w, const Output& output);
void conv2d_tf32(const Conv2dShape& shape, const float* x, const float* w,
                 const PooledOutput& output);
template <class Source>
void conv2d_tf32_backward_data(const Conv2dShape& shape, const Source& dy, const float* w,
                               float* dx);

template <class Source>
void conv2d_tf32_backward_weights(const Conv2dShape& shape, const Source& dy, const float* x,
                                  float* dw, float* db);

void conv2d_first(const Conv2dShape& shape, const float* x, const float* w, const Output& output);

void conv2d_depthwise(const Conv2dShape& shape, const float* x, const float* w,
                      const Output& output);
template <class Source>
void conv2d_depthwise_backward_data(const Conv2dShape& shape, const Source& dy, const float* w,
                                    float* dx);

void conv2d_direct(const Conv2dShape& shape, const float* x, const float* w, const Output& output);
void conv2d_direct(const Conv2dShape& shape, const float* x, const float* w,
                   const PooledOutput& output);
template <class Source>
void conv2d_direct_backward_data(const Conv2dShape& shape, const Source& dy, const float* w,
                                 float* dx);

// Weight gradients: sums over `splits` parts of the pixels, partial[split] = dw and behind it db,
// which sum_partials adds up in order.
int64_t weight_splits(const Conv2dShape& shape, int64_t blocks_a_split);
void sum_partials(const Conv2dShape& shape, int64_t splits, const float* partial, float* dw,
                  float* db);
template <class Source>
void conv2d_gemm_backward_weights(const Conv2dShape& shape, const Source& dy, const float* x,
                                  float* dw, float* db);
template <class Source>
void conv2d_first_backward_weights(const Conv2dShape& shape, const Source& dy, const float* x,
                                   float* dw, float* db);
template <class Source>
void conv2d_depthwise_backward_weights(const Conv2dShape& shape, const Source& dy, const float* x,
                                       float* dw, float* db);
template <class Source>
void conv2d_direct_backward_weights(const Conv2dShape& shape, const Source& dy, const float* x,
                                    float* dw, float* db);

}  // namespace pyconv::cuda
