// The inner loop under the data gradient of a 3x3 convolution from a pooled gradient, where vectors
// are wide and registers many.
//
// The four positions of a 2x2 pooling window and the 3x3 kernel meet a patch of 4x4 pixels. Of a
// slice of channels, as many as a vector holds, the patch is 16 vectors, half of the registers. So
// a patch of dx is loaded once, and all features that won at any of the window's positions add to
// it, with nine multiply-adds each. Which features won where is a comparison of bytes; its bits are
// walked through.
//
// Sums run over the windows row by row, within a window position by position, then by feature.
#pragma once

#include "isa.hpp"

namespace pyconv::cpu::PYCONV_ISA {

constexpr bool windows_fit_registers = lanes >= 16;
constexpr int64_t window_features = 64;  // bits of a comparison
constexpr int64_t window_taps = 9, window_pixels = 16;

// A row of windows, of which some features and a slice of the channels are taken.
struct WindowRow {
  int64_t windows;
  const float* dy;        // of the first window, at the first feature
  const uint8_t* winner;  // likewise
  int64_t window;         // from a window's features to the next one's
  int64_t features;       // at most window_features
  int64_t line, pixel;    // from a row of the image to the next one, from a pixel to the next one
  int64_t channels;       // at most lanes
  const float* weights;   // of these: [feature][tap][lanes]
};

static inline vec load_pixel(const WindowRow& row, const float* patch, int i) {
  return load_part(patch + i / 4 * row.line + i % 4 * row.pixel, row.channels);
}

// For paths with narrow vectors, which take another way, but are compiled; simd_avx512.hpp has its
// own.
template <class Byte>
static inline uint64_t bytes_equal(const Byte* p, int64_t n, uint8_t value) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < n; ++i) bits |= static_cast<uint64_t>(p[i] == value) << i;
  return bits;
}

// body(feature, gradient) for each feature that won at a position of the window.
template <class Body>
static inline void for_winners(uint64_t winners, const float* dy, const Body& body) {
  for (; winners != 0; winners &= winners - 1) {
    const int f = __builtin_ctzll(winners);
    body(f, broadcast(dy[f]));
  }
}

// For tap i and a winner at position k: its pixel of the patch.
constexpr int patch_pixel(int k, int i) { return (k / 2 + i / 3) * 4 + k % 2 + i % 3; }

template <int k>
static inline void add_to_patch(uint64_t winners, const float* dy, const float* weights,
                                vec (&patch)[window_pixels]) {
  for_winners(winners, dy, [&](int f, vec gradient) __attribute__((always_inline)) {
    const float* const w = weights + f * window_taps * lanes;
#pragma GCC unroll 9
    for (int i = 0; i < window_taps; ++i) {
      vec& pixel = patch[patch_pixel(k, i)];
      pixel = fmadd(gradient, load(w + i * lanes), pixel);
    }
  });
}
// dx += the row's gradients. weights: [feature][tap][lanes]; dx: at the first window's patch.
static inline void add_windows(const WindowRow& row, float* dx) {
  const float* dy = row.dy;
  const uint8_t* winner = row.winner;
  for (int64_t i = 0; i < row.windows; ++i, dy += row.window, winner += row.window) {
    vec patch[window_pixels];
#pragma GCC unroll 16
    for (int j = 0; j < window_pixels; ++j) patch[j] = load_pixel(row, dx, j);
    add_to_patch<0>(bytes_equal(winner, row.features, 0), dy, row.weights, patch);
    add_to_patch<1>(bytes_equal(winner, row.features, 1), dy, row.weights, patch);
    add_to_patch<2>(bytes_equal(winner, row.features, 2), dy, row.weights, patch);
    add_to_patch<3>(bytes_equal(winner, row.features, 3), dy, row.weights, patch);
#pragma GCC unroll 16
    for (int j = 0; j < window_pixels; ++j) {
      store_part(dx + j / 4 * row.line + j % 4 * row.pixel, patch[j], row.channels);
    }
    dx += 2 * row.pixel;
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
