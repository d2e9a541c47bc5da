// The register-blocked inner loops under every convolution and dense layer.
//
// They keep a tile of P rows by Q vectors of sums in registers: each step loads Q vectors and
// broadcasts P scalars for P * Q multiply-adds, so that the multipliers, not the load ports, are
// what limits them (6 x 2 on AVX2: 8 loads for 12 multiply-adds, with 2 of each a cycle).
//
// Every loop over a tile is unrolled completely, or the sums would live in memory: hence the
// pragmas.
//
// The order of the additions into one sum depends on neither P, nor Q, nor the place in the tile:
// the same element gets the same bits however the work was cut.
//
// Source of the scheme: K. Goto, R. van de Geijn, "Anatomy of high-performance matrix
// multiplication", ACM TOMS 34 (2008); for direct convolution E. Georganas et al., "Anatomy of
// high-performance deep learning convolutions on SIMD architectures", SC18.
#pragma once

#include "isa.hpp"

namespace pyconv::cpu::PYCONV_ISA {

constexpr int max_tile_rows = 12;
constexpr int64_t panel_lanes = 2 * lanes;
constexpr int cache_line = 16;  // floats

// Output features are cut into panels of two vectors; the last one may be a single vector, and may
// be filled up with zeros. Panels are stored behind one another, each row contiguous.
static inline int64_t panel_count(int64_t features) { return ceil_div(features, panel_lanes); }
static inline int64_t panel_vectors(int64_t features, int64_t panel) {
  return features - panel * panel_lanes > lanes ? 2 : 1;
}
static inline int64_t padded_features(int64_t features) {
  return ceil_div(features, lanes) * lanes;
}

// Panels that a tile goes through at once: with few rows of sums each of them would wait for its
// last addition before the next, which takes four cycles.
constexpr int few_rows = 3;
template <int P, int Q>
constexpr int panels_together = Q < 2           ? 1
                                : P == 1        ? 4
                                : P <= few_rows ? 2
                                                : 1;

// Keeps the compiler from computing a pointer anew from others: it would need more registers.
static inline void keep_in_register(const float*& p) {
#ifdef __GNUC__
  asm("" : "+r"(p));
#else
  (void)p;
#endif
}

// sum(i, j) += held(i) * passing(j), with what is held in registers all the while.
template <auto MultiplyAdd, int Held, int Passing, class First, class Second, class Sum>
__attribute__((always_inline)) static inline void add_holding(const First& held,
                                                              const Second& passing,
                                                              const Sum& sum) {
  vec factors[Held];
#pragma GCC unroll 16
  for (int i = 0; i < Held; ++i) factors[i] = held(i);
#pragma GCC unroll 16
  for (int j = 0; j < Passing; ++j) {
    const vec factor = passing(j);
#pragma GCC unroll 16
    for (int i = 0; i < Held; ++i) sum(i, j) = MultiplyAdd(factors[i], factor, sum(i, j));
  }
}
// sum[p][v] += left(p) * right(v), holding whichever factors are fewer.
template <auto MultiplyAdd = fmadd, int P, int V, class Left, class Right>
__attribute__((always_inline)) static inline void add_products(vec (&sum)[P][V], const Left& left,
                                                               const Right& right) {
  if constexpr (P < V) {
    add_holding<MultiplyAdd, P, V>(left, right, [&](int p, int v) -> vec& { return sum[p][v]; });
  } else {
    add_holding<MultiplyAdd, V, P>(right, left, [&](int v, int p) -> vec& { return sum[p][v]; });
  }
}

// body<G>(panel) for so many panels, G at once while there are as many, then one by one.
template <int P, int Q, class Body>
static inline void for_panels(int64_t panels, const Body& body) {
  constexpr int together = panels_together<P, Q>;
  int64_t panel = 0;
  if constexpr (together > 1) {
    for (; panel + together <= panels; panel += together) body.template operator()<together>(panel);
  }
  for (; panel < panels; ++panel) body.template operator()<1>(panel);
}

// ---------------------------------------------------------------------------------------------
// Sums over taps and channels:  y[p, f] = bias[f] + sum_t sum_k x[p][t.x + k] * w[t.w + k, f]

// A run of channels under one tap, or under several that lie behind one another in memory.
struct Tap {
  int64_t x;      // where the run begins, relative to the tile row's origin
  int64_t w;      // first row of the weights
  int64_t depth;  // length
};

struct ForwardTile {
  const float* x[max_tile_rows];  // origin of each row
  float* y[max_tile_rows];
  const Tap* taps;
  int64_t tap_count;
  const float* w;           // panels: [rows][Q * lanes] each
  const float* bias;        // at the first panel's first feature, or null
  int64_t panels, w_panel;  // how many, all whole if several, and the step between them
  int64_t features;         // how many features of the panel exist
  float least;              // results below it become it: 0 for ReLU, else -infinity
};
// The same with the weights as they lie, not packed: their rows are a step apart, and all of a
// panel's features exist.
struct AsTheyLie {
  const ForwardTile& tile;
  int64_t w_row;
};
// The same of numbers of bfloat16 in pairs: an element of x and of the weights is two channels.
// Half as many steps, to the same sums: the products, exact in float32, are added in the same
// order.
struct InPairs {
  const ForwardTile& tile;
};

// Of G panels from first_w on, whose results begin at this feature.
template <int P, int Q, int G, auto MultiplyAdd = fmadd>
static inline void sum_taps(const ForwardTile& tile, const float* first_w, int64_t w_row,
                            int64_t feature) {
  constexpr int vectors = G * Q;
  const bool whole = tile.features >= Q * lanes;
  vec sum[P][vectors];
#pragma GCC unroll 16
  for (int q = 0; q < vectors; ++q) {
    vec bias = zero();
    if (tile.bias != nullptr) {
      const float* const from = tile.bias + feature + q * lanes;
      bias = whole ? load(from) : load_n(from, min(tile.features - q * lanes, lanes));
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) sum[p][q] = bias;
  }
  for (int64_t t = 0; t < tile.tap_count; ++t) {
    const Tap tap = tile.taps[t];
    const float* w[G];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) w[g] = first_w + g * tile.w_panel + tap.w * w_row;
    const float* x[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) x[p] = tile.x[p] + tap.x;
#pragma GCC unroll 4
    for (int64_t k = 0; k < tap.depth; ++k) {
      add_products<MultiplyAdd>(
          sum, [&](int p) { return broadcast(x[p][k]); },
          [&](int v) { return load(w[v / Q] + v % Q * lanes); });
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) w[g] += w_row;
    }
  }
  const vec least = broadcast(tile.least);
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int q = 0; q < vectors; ++q) {
      const vec v = at_least(least, sum[p][q]);
      float* const to = tile.y[p] + feature + q * lanes;
      if (whole) {
        store(to, v);
      } else {
        store_n(to, v, min(tile.features - q * lanes, lanes));
      }
    }
  }
}
template <int P, int Q>
static void compute(const ForwardTile& tile) {
  for_panels<P, Q>(tile.panels, [&]<int G>(int64_t panel) {
    sum_taps<P, Q, G>(tile, tile.w + panel * tile.w_panel, Q * lanes, panel * Q * lanes);
  });
}
template <int P, int Q>
static void compute(const AsTheyLie& how) {
  sum_taps<P, Q, 1>(how.tile, how.tile.w, how.w_row, 0);
}
template <int P, int Q>
static void compute(const InPairs& how) {
  const ForwardTile& tile = how.tile;
  for_panels<P, Q>(tile.panels, [&]<int G>(int64_t panel) {
    sum_taps<P, Q, G, fmadd_pairs>(tile, tile.w + panel * tile.w_panel, Q * lanes,
                                   panel * Q * lanes);
  });
}

// ---------------------------------------------------------------------------------------------
// Sums over pixels:  dw[p, f] += sum_pixel x[p][pixel] * dy[pixel, f]
//
// for the features of some panels, one panel after the other.

struct WeightsTile {
  const float* x[max_tile_rows];    // what each row of the weights multiplies, at the first pixel
  int64_t x_image, x_row, x_pixel;  // steps between images, rows and pixels of x
  const float* dy;                  // panels: [images * rows * pixels][Q * lanes] each
  int64_t panels, dy_panel;         // how many, all whole if several, and the step between them
  int64_t images, rows, pixels;
  float* dw[max_tile_rows];  // where each row of sums goes
  int64_t features;          // how many features of the panel exist
  bool overwrite;            // start from zero instead of what dw holds
};

// Of the panel dy, whose sums begin at this column of dw's.
template <int P, int Q>
static void sum_pixels(const WeightsTile& tile, const float* dy, int64_t column) {
  vec sum[P][Q];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) {
      sum[p][q] = zero();
    }
  }
  for (int64_t image = 0; image < tile.images; ++image) {
    for (int64_t row = 0; row < tile.rows; ++row) {
      const float* x[P];
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) x[p] = tile.x[p] + image * tile.x_image + row * tile.x_row;
      int64_t at = 0;
#pragma GCC unroll 4
      for (int64_t pixel = 0; pixel < tile.pixels; ++pixel) {
        add_products(
            sum, [&](int p) { return broadcast(x[p][at]); },
            [&](int q) { return load(dy + q * lanes); });
        dy += Q * lanes;
        at += tile.x_pixel;
      }
    }
  }
  // What dw holds is added at the end: loading it need not be waited for at the beginning.
  const bool whole = tile.features >= Q * lanes;
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) {
      float* const dw = tile.dw[p] + column + q * lanes;
      if (whole) {
        store(dw, tile.overwrite ? sum[p][q] : add(load(dw), sum[p][q]));
      } else {
        const int64_t count = min(tile.features - q * lanes, lanes);
        store_n(dw, tile.overwrite ? sum[p][q] : add(load_n(dw, count), sum[p][q]), count);
      }
    }
  }
}

template <int P, int Q>
static void compute(const WeightsTile& tile) {
  for (int64_t panel = 0; panel < tile.panels; ++panel) {
    sum_pixels<P, Q>(tile, tile.dy + panel * tile.dy_panel, panel * Q * lanes);
  }
}

// ---------------------------------------------------------------------------------------------
// A plain product of matrices:  c[p, f] = sum_k a[p, k] * b[k, f]

struct ProductTile {
  const float* a;  // [P][a_row]
  int64_t a_row;
  const float* b;  // panels: [depth][Q * lanes] each
  int64_t depth;
  float* c;  // [P][c_row]
  int64_t c_row;
  int64_t panels, b_panel;  // how many, all whole if several, and the step between them
  // From b to the panel that the next product takes, which is fetched meanwhile. Where there are
  // few rows, fetching takes as long as multiplying.
  int64_t b_next;
};

// Of G panels from first_b on, whose results begin at first_c.
template <int P, int Q, int G>
static inline void multiply(const ProductTile& tile, const float* first_b, float* first_c) {
  constexpr int vectors = G * Q;
  vec sum[P][vectors];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int q = 0; q < vectors; ++q) sum[p][q] = zero();
  }
  // Every third row has a pointer, and an address is a pointer and none, one or two steps: there
  // are fewer general registers than rows.
  constexpr int stride = 3, pointers = (P + stride - 1) / stride;
  const float* a[pointers];
#pragma GCC unroll 16
  for (int i = 0; i < pointers; ++i) a[i] = tile.a + i * stride * tile.a_row;
  const int64_t a_row = tile.a_row;
  const float* b[G];
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) b[g] = first_b + g * tile.b_panel;
  const int64_t b_next = tile.b_next;
  for (int64_t k = 0; k < tile.depth; ++k) {
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 16
      for (int i = 0; i < Q * lanes; i += cache_line) __builtin_prefetch(b[g] + b_next + i);
    }
    add_products(
        sum, [&](int p) { return broadcast(a[p / stride][p % stride * a_row]); },
        [&](int v) { return load(b[v / Q] + v % Q * lanes); });
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) b[g] += Q * lanes;
#pragma GCC unroll 16
    for (int i = 0; i < pointers; ++i) keep_in_register(++a[i]);
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int q = 0; q < vectors; ++q) store(first_c + p * tile.c_row + q * lanes, sum[p][q]);
  }
}
template <int P, int Q>
static void compute(const ProductTile& tile) {
  for_panels<P, Q>(tile.panels, [&]<int G>(int64_t panel) {
    multiply<P, Q, G>(tile, tile.b + panel * tile.b_panel, tile.c + panel * Q * lanes);
  });
}

// ---------------------------------------------------------------------------------------------
// A product of matrices, of which the first is transposed:  c[p, f] += sum_k a[k, p] * b[k, f]

struct TransposedTile {
  const float* a;  // [depth][a_row]
  int64_t a_row;
  const float* b;  // [depth][b_row]; a panel's rows are Q * lanes long
  int64_t b_row;
  int64_t depth;
  float* c;        // [P][Q * lanes]
  bool overwrite;  // start from zero instead of what c holds
};

template <int P, int Q>
static void compute(const TransposedTile& tile) {
  vec sum[P][Q];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) sum[p][q] = zero();
  }
  const float *a = tile.a, *b = tile.b;
#pragma GCC unroll 2
  for (int64_t k = 0; k < tile.depth; ++k) {
    add_products(
        sum, [&](int p) { return broadcast(a[p]); }, [&](int q) { return load(b + q * lanes); });
    a += tile.a_row;
    b += tile.b_row;
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) {
      float* const c = tile.c + (p * Q + q) * lanes;
      store(c, tile.overwrite ? sum[p][q] : add(load(c), sum[p][q]));
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Products of vectors:  y[f] = sum_t sum_k x[t.x + k] * w[f, t, k]

struct DotTile {
  const float* x[1];
  float* y[1];
  const Tap* taps;  // whose w / depth is the tap's number
  int64_t tap_count;
  const float* w;  // of the tile's first feature
  int64_t w_feature, w_tap;
  int64_t features;
};

// Of F features from `first` on, one or as many as there are lanes.
template <int F>
[[gnu::noinline]] static void compute_dots(const DotTile& tile, int64_t first) {
  vec sum[1][F];
#pragma GCC unroll 16
  for (int f = 0; f < F; ++f) sum[0][f] = zero();
  const int64_t w_feature = tile.w_feature;
  for (int64_t t = 0; t < tile.tap_count; ++t) {
    const Tap tap = tile.taps[t];
    const float* x = tile.x[0] + tap.x;
    const float* w = tile.w + first * w_feature + tap.w / tap.depth * tile.w_tap;
    int64_t rest = tap.depth;
    for (; rest >= lanes; rest -= lanes, x += lanes, w += lanes) {
      add_products(
          sum, [&](int) { return load(x); }, [&](int f) { return load(w + f * w_feature); });
    }
    if (rest > 0) {
      add_products(
          sum, [&](int) { return load_n(x, rest); },
          [&](int f) { return load_n(w + f * w_feature, rest); });
    }
  }
  float* const y = tile.y[0] + first;
  if constexpr (F == lanes) {
    store(y, sum_each(sum[0]));
  } else {
    static_assert(F == 1);
    *y = sum_lanes(sum[0][0]);
  }
}

static inline void run_tile(const DotTile& tile) {
  if (tile.features < lanes) {
    for (int64_t f = 0; f < tile.features; ++f) compute_dots<1>(tile, f);
    return;
  }
  // The last vector of features begins where it is whole.
  for (int64_t f = 0; f < tile.features; f += lanes) {
    compute_dots<lanes>(tile, min(f, tile.features - lanes));
  }
}

// ---------------------------------------------------------------------------------------------

// Runs the instance for this many vectors and rows.
template <int Q, int P = 1, class Tile>
static inline void run_rows(const Tile& tile, int64_t rows) {
  if (rows == P) {
    compute<P, Q>(tile);
  } else if constexpr (P < tile_rows[Q]) {
    run_rows<Q, P + 1>(tile, rows);
  }
}

template <class Tile>
static inline void run_tile(const Tile& tile, int64_t vectors, int64_t rows) {
  if (vectors == 2) {
    run_rows<2>(tile, rows);
  } else {
    run_rows<1>(tile, rows);
  }
}

}  // namespace pyconv::cpu::PYCONV_ISA
