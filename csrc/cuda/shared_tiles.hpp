// Where the convolution kernels keep their tiles in shared memory, offsets in floats, and which
// thread writes and reads what of them. Plain C++ as well: tests/test_cuda_bank_conflicts.py counts
// the bank conflicts of these functions, which are the ones that the kernels call.
//
// Shared memory has 32 banks of 4 bytes. An access of 16 bytes a lane goes 8 lanes at a time; two
// such passes are one where all lanes ^ 1, or all lanes ^ 2, want the same.
#pragma once

#include "host_device.hpp"

namespace pyconv::cuda {

// What a thread moves into a tile: 16 bytes of row `row`, and of rows further on.
struct Loader {
  int row, unit;
};
// Which part of a product's tile a thread sums.
struct Place {
  int row, column;
};

namespace gemm_tiles {

// A block has 128 or 64 positions, Rows, and as many threads.
constexpr int thread_rows = 8;  // positions of a thread, row_step apart
template <int Rows>
constexpr int row_step = Rows / thread_rows;
constexpr int part_columns = 32;
constexpr int depth = 16;         // channels of a step
constexpr int units = depth / 4;  // 16-byte units of it

// Rows row + row_step i, columns column * 4 + {0, 1, 2, 3} and for N = 64 the same 32 columns
// further.
template <int Rows>
PYCONV_HOST_DEVICE constexpr Place place_of(int thread) {
  constexpr int warps_down = Rows / 64;
  const int lane = thread % warp_size, warp = thread / warp_size;
  return {warp % warps_down * 8 + (lane >> 1 & 1) + (lane >> 3 & 3) * 2,
          warp / warps_down * 4 + (lane & 1) + (lane >> 2 & 1) * 2};
}

// The source's tile is [position][16 channels]. Units of four channels change places by bits 1 and
// 2 of the position, so that neighbours lie in different banks.
PYCONV_HOST_DEVICE constexpr int source_at(int row, int unit) {
  return row * depth + (unit ^ (row >> 1 & 3)) * 4;
}
// Rows 8 k apart change places alike.
static_assert(source_at(5 + 8, 2) == source_at(5, 2) + 8 * depth);

template <int N>
PYCONV_HOST_DEVICE constexpr int weight_at(int k, int column) {
  return k * N + column;
}

// Loads the same unit of rows source_step apart.
template <int Rows>
constexpr int source_step = Rows / units;
PYCONV_HOST_DEVICE constexpr Loader source_loader(int thread) {
  return {thread / units, thread % units};
}
template <int Rows, int N>
constexpr int weight_step = 4 * Rows / N;
template <int N>
PYCONV_HOST_DEVICE constexpr Loader weight_loader(int thread) {
  return {thread / (N / 4), thread % (N / 4)};
}

}  // namespace gemm_tiles

namespace weights_tiles {

constexpr int threads = 96;
constexpr int tile_rows = 96;  // taps and channels of a block
constexpr int depth = 16;      // pixels of a step

// Rows row * 4 + {0, 1, 2, 3} and 48 further, columns column * 4 + {0, 1, 2, 3} and for N = 64
// those 32 further.
constexpr int part_rows = 48, part_columns = 32;
PYCONV_HOST_DEVICE constexpr Place place_of(int thread) {
  const int lane = thread % warp_size, warp = thread / warp_size;
  return {warp * 4 + (lane >> 1 & 1) + (lane >> 3 & 1) * 2,
          (lane & 1) + (lane >> 2 & 1) * 2 + (lane >> 4 & 1) * 4};
}

// Both tiles lie as the product wants them, [pixel][row] and [pixel][column].
PYCONV_HOST_DEVICE constexpr int x_at(int pixel, int row) { return pixel * tile_rows + row; }
template <int N>
PYCONV_HOST_DEVICE constexpr int dy_at(int pixel, int column) {
  return pixel * N + column;
}

constexpr int x_step = threads / (tile_rows / 4);
PYCONV_HOST_DEVICE constexpr Loader x_loader(int thread) {
  return {thread / (tile_rows / 4), thread % (tile_rows / 4)};
}
template <int N>
constexpr int dy_step = threads / (N / 4);
template <int N>
PYCONV_HOST_DEVICE constexpr Loader dy_loader(int thread) {
  return {thread / (N / 4), thread % (N / 4)};
}

}  // namespace weights_tiles

namespace tf32_tiles {

constexpr int threads = 128;
constexpr int tile_rows = 8, tile_columns = 16;
constexpr int kernel = 3, taps = kernel * kernel;
constexpr int depth = 8;  // channels of a step: the k of one mma
constexpr int patch_rows = tile_rows + kernel - 1, patch_columns = tile_columns + kernel - 1;
constexpr int patch_pixels = patch_rows * patch_columns;

// Where a half (four channels) of a patch's pixel lies. Neighbours at a distance of two pixels,
// which a matrix takes, would share banks.
PYCONV_HOST_DEVICE constexpr int patch_at(int pixel, int half) {
  const int line = pixel >> 2;
  return line * 32 + ((((pixel & 3) * 2 + half) ^ (line & 3)) * 4);
}
// The same for a filter of a tap; here a matrix takes direct neighbours.
PYCONV_HOST_DEVICE constexpr int weight_at(int filter, int half) {
  return filter * depth + (half ^ (filter >> 2 & 1)) * 4;
}

// A thread moves a half of every 64th pixel, and of every 64th filter of all taps.
constexpr int loader_step = threads / 2;
PYCONV_HOST_DEVICE constexpr Loader loader_of(int thread) { return {thread / 2, thread % 2}; }

// The row of a matrix that a lane gives ldmatrix the address of. In the patch, matrices 0 to 3 are
// the even and the odd pixels of the first four channels, then of the others, here for the first
// tap and the warp's first row; in the weights 8 filters' first and second four channels, then
// those of the next 8.
PYCONV_HOST_DEVICE constexpr Loader patch_row_of(int thread) {
  const int lane = thread % warp_size, warp = thread / warp_size;
  return {2 * warp * patch_columns + 2 * (lane % 8) + (lane / 8 & 1), lane / 16};
}
PYCONV_HOST_DEVICE constexpr Loader weight_row_of(int thread) {
  const int lane = thread % warp_size;
  return {lane % 8 + lane / 16 * 8, lane / 8 & 1};
}

}  // namespace tf32_tiles

namespace tf32_weight_tiles {

constexpr int taps = 9;
constexpr int threads = taps * warp_size;
constexpr int side = 8, pixels = side * side;  // of a tile
constexpr int patch_side = side + 2, patch_pixels = patch_side * patch_side;
constexpr int channels = 32, channel_units = channels / 4;  // of a block

// Of 8 values more than there are: rows 1, 2 and 3 further lie 8, 16 and 24 banks further.
constexpr int x_pitch = channels + 8;
template <int N>
constexpr int dy_pitch = N + 8;

}  // namespace tf32_weight_tiles

namespace dense_tiles {

constexpr int threads = 256, warps = threads / warp_size;
constexpr int tile = 32;                       // rows and columns of a block
constexpr int depth = 64;                      // terms of a step
constexpr int warp_terms = depth / warps;      // of which each warp has some
constexpr int loads = tile * depth / threads;  // values of an operand that a thread loads
constexpr int thread_rows = 4, thread_columns = 8;

// Which rows and columns of the tile a lane sums: see row_of.
PYCONV_HOST_DEVICE constexpr Place place_of(int lane) { return {lane / 4, lane % 4}; }

// An operand's part lies as in memory: 32 rows of 64 terms, padded so that lanes with different
// rows meet in different banks, or 64 terms of 32 columns.
constexpr int term_pitch = depth + 4;
constexpr int tile_floats = tile * term_pitch;
template <bool AlongTerms>
PYCONV_HOST_DEVICE constexpr int tile_at(int row, int column) {
  return row * (AlongTerms ? term_pitch : tile) + column;
}
static_assert(depth * tile <= tile_floats);

// The rows (or columns) of a lane: in the first case `32 / Count` apart, else fours, 128 / Count
// apart.
template <bool AlongTerms, int Count>
PYCONV_HOST_DEVICE constexpr int row_of(int first, int i) {
  return AlongTerms ? first + i * (tile / Count) : first * 4 + i / 4 * (4 * tile / Count) + i % 4;
}

// Where a warp's sums wait to be added up.
PYCONV_HOST_DEVICE constexpr int sum_at(int warp, int row, int column) {
  return (warp * tile + row) * tile + column;
}
constexpr int shared_floats = 4 * tile_floats;
static_assert(warps * tile * tile <= shared_floats);

}  // namespace dense_tiles

namespace first_tiles {

constexpr int channels = 3, kernel = 3, taps = kernel * kernel * channels;
constexpr int tile_rows = 8, tile_columns = 32, tile_filters = 32;
constexpr int quads = tile_filters / 4;
// Floats of a row of the picture's patch, two pixels wider than the tile; padded to whole 16 bytes.
constexpr int patch_rows = tile_rows + 2;
constexpr int patch_floats = (tile_columns + 2) * channels;
constexpr int patch_pitch = (patch_floats + 3) / 4 * 4;

PYCONV_HOST_DEVICE constexpr int patch_at(int row, int column) {
  return row * patch_pitch + column * channels;
}
PYCONV_HOST_DEVICE constexpr int weight_at(int pair, int filter) {
  return pair * tile_filters + filter;
}
PYCONV_HOST_DEVICE constexpr int gradient_at(int row, int column, int filter) {
  return (row * tile_columns + column) * tile_filters + filter;
}

// Forward: a thread makes `run` pixels of a row and four filters.
constexpr int forward_threads = 256;
constexpr int run = 8;
struct Run {
  int row, column, filter;
};
PYCONV_HOST_DEVICE constexpr Run run_of(int thread) {
  return {thread / quads / (tile_columns / run), thread / quads % (tile_columns / run) * run,
          thread % quads * 4};
}

// Weight gradient: a thread sums a row of the kernel and four filters over one row of the tile.
constexpr int weight_threads = quads * tile_rows * kernel;
struct Sum {
  int kernel_row, row, filter;
};
PYCONV_HOST_DEVICE constexpr Sum sum_of(int thread) {
  return {thread / quads / tile_rows, thread / quads % tile_rows, thread % quads * 4};
}
// Where its sums go in the end: [kernel row][row][pair][filter].
constexpr int pairs = kernel * channels;
PYCONV_HOST_DEVICE constexpr int sum_at(int kernel_row, int row, int pair, int filter) {
  return ((kernel_row * tile_rows + row) * (pairs + 1) + pair) * tile_filters + filter;
}

}  // namespace first_tiles

}  // namespace pyconv::cuda
