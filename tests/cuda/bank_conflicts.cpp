// Prints what the threads of each warp access in shared memory, 16 bytes each, by the kernels' own
// address functions: a line an access, its name and the 32 lanes' offsets in floats (-1: none).
#include <cstdio>

#include "shared_tiles.hpp"

using namespace pyconv::cuda;

template <class At>
void access(const char* name, int threads, At at) {
  for (int warp = 0; warp < threads / warp_size; ++warp) {
    std::printf("%s:", name);
    for (int lane = 0; lane < warp_size; ++lane) std::printf(" %d", at(warp * warp_size + lane));
    std::printf("\n");
  }
}

template <int Rows, int N>
void gemm() {
  using namespace gemm_tiles;
  constexpr int threads = Rows;
  for (int i = 0; i < Rows / source_step<Rows>; ++i) {
    access("gemm: store source", threads, [&](int thread) {
      const Loader l = source_loader(thread);
      return source_at(l.row, l.unit) + i * source_step<Rows> * depth;
    });
  }
  for (int i = 0; i < depth / weight_step<Rows, N>; ++i) {
    access("gemm: store weights", threads, [&](int thread) {
      const Loader l = weight_loader<N>(thread);
      return weight_at<N>(l.row, l.unit * 4) + i * weight_step<Rows, N> * N;
    });
  }
  for (int unit = 0; unit < units; ++unit) {
    for (int i = 0; i < thread_rows; ++i) {
      const int down = i * row_step<Rows>;
      access("gemm: read source", threads, [&](int thread) {
        return source_at(place_of<Rows>(thread).row, unit) + down * depth;
      });
      access("without swizzle: read source", threads,
             [&](int thread) { return (place_of<Rows>(thread).row + down) * depth + unit * 4; });
    }
  }
  for (int k = 0; k < depth; ++k) {
    for (int part = 0; part < N / part_columns; ++part) {
      access("gemm: read weights", threads, [&](int thread) {
        return weight_at<N>(k, place_of<Rows>(thread).column * 4 + part * part_columns);
      });
    }
  }
}

template <int N>
void weights() {
  using namespace weights_tiles;
  for (int i = 0; i < depth / x_step; ++i) {
    access("weights: store x", threads, [&](int thread) {
      const Loader l = x_loader(thread);
      return x_at(l.row + i * x_step, l.unit * 4);
    });
  }
  for (int i = 0; i < ceil_div(depth, dy_step<N>); ++i) {
    access("weights: store dy", threads, [&](int thread) {
      const Loader l = dy_loader<N>(thread);
      const int pixel = l.row + i * dy_step<N>;
      return pixel < depth ? dy_at<N>(pixel, l.unit * 4) : -1;
    });
  }
  for (int k = 0; k < depth; ++k) {
    for (int part = 0; part < tile_rows / part_rows; ++part) {
      access("weights: read x", threads,
             [&](int thread) { return x_at(k, place_of(thread).row * 4 + part * part_rows); });
    }
    for (int part = 0; part < N / part_columns; ++part) {
      access("weights: read dy", threads, [&](int thread) {
        return dy_at<N>(k, place_of(thread).column * 4 + part * part_columns);
      });
    }
  }
}

template <int N>
void tf32() {
  using namespace tf32_tiles;
  for (int i = 0; i < ceil_div(patch_pixels, loader_step); ++i) {
    access("tf32: store patch", threads, [&](int thread) {
      const Loader l = loader_of(thread);
      const int pixel = l.row + i * loader_step;
      return pixel < patch_pixels ? patch_at(pixel, l.unit) : -1;
    });
  }
  for (int i = 0; i < ceil_div(taps * N, loader_step); ++i) {
    access("tf32: store weights", threads, [&](int thread) {
      const Loader l = loader_of(thread);
      const int row = l.row + i * loader_step;
      return row < taps * N ? row / N * N * depth + weight_at(row % N, l.unit) : -1;
    });
  }
  for (int row = 0; row <= kernel; ++row) {  // of the warp's two, and of the kernel's three
    for (int s = 0; s < kernel; ++s) {
      access("tf32: load matrices of patch", threads, [&](int thread) {
        const Loader l = patch_row_of(thread);
        return patch_at(l.row + row * patch_columns + s, l.unit);
      });
      access("without swizzle: load matrices of patch", threads, [&](int thread) {
        const Loader l = patch_row_of(thread);
        return (l.row + row * patch_columns + s) * depth + l.unit * 4;
      });
    }
  }
  for (int tap = 0; tap < taps; ++tap) {
    for (int pair = 0; pair < N / 16; ++pair) {
      access("tf32: load matrices of weights", threads, [&](int thread) {
        const Loader l = weight_row_of(thread);
        return (tap * N + pair * 16) * depth + weight_at(l.row, l.unit);
      });
    }
  }
}

template <bool AlongTerms, int Count>
void dense() {
  using namespace dense_tiles;
  for (int k = 0; k < warp_terms; ++k) {
    if (AlongTerms && k % 4 != 0) continue;
    for (int i = 0; i < Count; i += AlongTerms ? 1 : 4) {
      access("dense: read", threads, [&](int thread) {
        const Place place = place_of(thread % warp_size);
        const int first = Count == thread_rows ? place.row : place.column;
        const int row = row_of<AlongTerms, Count>(first, i),
                  term = thread / warp_size * warp_terms + k;
        return AlongTerms ? tile_at<true>(row, term) : tile_at<false>(term, row);
      });
    }
  }
}

void first() {
  using namespace first_tiles;
  for (int r = 0; r < kernel; ++r) {
    for (int i = 0; i < (run + 2) * channels; i += 4) {
      access("first: read patch", forward_threads, [&](int thread) {
        const Run own = run_of(thread);
        return patch_at(own.row + r, own.column) + i;
      });
    }
    for (int k = 0; k < pairs; ++k) {
      access("first: read weights", forward_threads,
             [&](int thread) { return weight_at(r * pairs + k, run_of(thread).filter); });
    }
  }
  for (int column = 0; column < tile_columns; ++column) {
    access("first weights: read gradient", weight_threads, [&](int thread) {
      const Sum own = sum_of(thread);
      return gradient_at(own.row, column, own.filter);
    });
    if (column % 4 != 0) continue;
    for (int i = 0; i < 6 * channels; i += 4) {
      access("first weights: read patch", weight_threads, [&](int thread) {
        const Sum own = sum_of(thread);
        return patch_at(own.row + own.kernel_row, column) + i;
      });
    }
  }
  for (int k = 0; k <= pairs; ++k) {
    access("first weights: store sums", weight_threads, [&](int thread) {
      const Sum own = sum_of(thread);
      return sum_at(own.kernel_row, own.row, k, own.filter);
    });
  }
}

int main() {
  gemm<128, 64>();
  gemm<128, 32>();
  gemm<64, 64>();
  gemm<64, 32>();
  dense<true, dense_tiles::thread_rows>();
  dense<false, dense_tiles::thread_rows>();
  dense<true, dense_tiles::thread_columns>();
  dense<false, dense_tiles::thread_columns>();
  weights<64>();
  weights<32>();
  tf32<64>();
  tf32<32>();
  first();
}
