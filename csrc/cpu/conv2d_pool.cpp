// Convolution + bias + ReLU + 2x2 max pooling + dropout, and its gradients from the pooled
// gradient.
//
//   conv2d_pool                   y  = dropout(max_pool(relu(conv + b)))  overwrites y, winner
//   conv2d_pool_backward_data     dx                                      overwrites dx
//   conv2d_pool_backward_weights  dw, db                                  overwrites dw, db
//
// y, dy and winner are pooled, [n, ph, pw, oc]; see ConvPoolShape.
//
// The gradient that reaches the convolution is sparse, exactly: of the four positions of a window
// three are zero, and all four where ReLU or dropout let nothing through. So it is never written.
// Each pooled value that counts adds g * w[:, :, :, f] to the patch of dx under its position, and
// g * (that patch of x) to dw[:, :, :, f]; a row of a kernel is one run of kw * c floats in both.
// That takes an eighth of the multiplications of the dense gradient if half of the windows count.
//
// The data gradient goes position by position, so that a patch is read and written once for all
// features that win there; the weight gradient feature by feature, with its taps in registers. Both
// are sums of scaled rows (add_terms, below). Where vectors are wide, the data gradient of a 3x3
// kernel goes window by window instead (pool_windows.hpp).
//
// Deterministic: sums run over positions and features in their order, in the weight gradient over
// chunks of the batch whose number depends on the shape only.
#include "conv2d.hpp"
#include "philox.hpp"
#include "pool_windows.hpp"
#include "tiles.hpp"

namespace pyconv::cpu::PYCONV_ISA {

namespace {

// ---------------------------------------------------------------------------------------------
// Sums of scaled rows

// A pooled gradient and where its row begins: of the weights in the data gradient, of x in the
// weight gradient.
struct Term {
  int32_t row;
  float value;
};

// Adds the terms' value * rows[row + r * rows_step + i] to sum[r * sum_step + i].
using AddTerms = void (*)(const Term* terms, int64_t count, const float* rows, int64_t rows_step,
                          float* sum, int64_t sum_step, int64_t last);

// For R rows of V vectors, of whose last one `last` floats count.
template <int R, int V, bool whole>
void add_terms(const Term* terms, int64_t count, const float* rows, int64_t rows_step, float* sum,
               int64_t sum_step, int64_t last) {
  vec s[R][V];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int v = 0; v < V; ++v) {
      const float* from = sum + r * sum_step + v * lanes;
      s[r][v] = whole || v < V - 1 ? load(from) : load_n(from, last);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const vec value = broadcast(terms[i].value);
    const float* row = rows + terms[i].row;
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r, row += rows_step) {
#pragma GCC unroll 12
      for (int v = 0; v < V; ++v) {
        const float* from = row + v * lanes;
        s[r][v] = fmadd(value, whole || v < V - 1 ? load(from) : load_n(from, last), s[r][v]);
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int v = 0; v < V; ++v) {
      float* to = sum + r * sum_step + v * lanes;
      if (whole || v < V - 1) {
        store(to, s[r][v]);
      } else {
        store_n(to, s[r][v], last);
      }
    }
  }
}

// Registers that sums may take; the others hold a factor and what is loaded.
constexpr int sum_vectors = lanes == 16 ? 24 : 12;
constexpr int most_vectors = 12, most_rows = 3;  // of a piece

template <int R = most_rows, int V = most_vectors>
AddTerms find_add_terms(int64_t rows, int64_t vectors, bool whole) {
  if constexpr (R > 1) {
    if (rows < R) return find_add_terms<R - 1, V>(rows, vectors, whole);
  }
  if constexpr (V > 1) {
    if (vectors < V) return find_add_terms<R, V - 1>(rows, vectors, whole);
  }
  if constexpr (R * V <= sum_vectors) {
    return whole ? add_terms<R, V, true> : add_terms<R, V, false>;
  } else {
    return nullptr;  // not asked for
  }
}

// A patch is kh rows of kw * c floats. A piece is a part of it whose sums fit into registers.
struct Piece {
  int64_t row, column;  // where it begins
  int64_t last;         // floats in its last vector
  AddTerms add;
};

struct Pieces {
  static constexpr int64_t block = most_vectors * lanes;  // columns
  int64_t kernel_rows, row_size;

  int64_t rows() const {
    return min(most_rows, sum_vectors / ceil_div(min(row_size, block), lanes));
  }
  int64_t count() const { return ceil_div(row_size, block) * ceil_div(kernel_rows, rows()); }
  void list(Piece* piece) const {
    for (int64_t column = 0; column < row_size; column += block) {
      const int64_t size = min(block, row_size - column), vectors = ceil_div(size, lanes);
      const int64_t last = size - (vectors - 1) * lanes;
      for (int64_t row = 0; row < kernel_rows; row += rows(), ++piece) {
        const int64_t count = min(rows(), kernel_rows - row);
        *piece = {row, column, last, find_add_terms(count, vectors, last == lanes)};
      }
    }
  }
};

// Appends what counts of a pooled pixel to the terms of its features. Dead ones are written too,
// and overwritten by the next: a branch here would be guessed wrong half of the time. `rows` has a
// row for each position, and four more for the dead; `pixel` is memory for a term a feature.
inline void sort_by_feature(int64_t features, float scale, const float* __restrict dy,
                            const uint8_t* __restrict winner, const int32_t* __restrict rows,
                            int64_t stride, Term* __restrict pixel, Term* __restrict terms,
                            int32_t* __restrict counts) {
  static_assert(sizeof(Term) == 8);
  int64_t f = 0;
  for (; f + lanes <= features; f += lanes) {
    store_pairs(pixel + f, rows, winner + f, mul(load(dy + f), broadcast(scale)));
  }
  for (; f < features; ++f) pixel[f] = {rows[winner[f] & 7], dy[f] * scale};
  for (f = 0; f < features; ++f) terms[f * stride + counts[f]] = pixel[f];
  for (f = 0; f + lanes <= features; f += lanes) count_below(counts + f, winner + f, pool_dead);
  for (; f < features; ++f) counts[f] += winner[f] < pool_dead ? 1 : 0;
}

// Appends what counts of a pooled pixel to the terms of the four positions; `rows` is the step from
// a feature's row to the next one's. Returns the counts, 12 bits each, which add up in a register.
inline uint64_t sort_by_position(int64_t features, float scale, const float* __restrict dy,
                                 const uint8_t* __restrict winner, int32_t row, int32_t rows,
                                 int64_t stride, Term* __restrict terms) {
  uint64_t counts = 0;
  for (int64_t f = 0; f < features; ++f, row += rows) {
    // The caller's winner may hold anything.
    const uint32_t k = winner[f] < pool_dead ? winner[f] : pool_dead;
    Term& term = terms[k * stride + static_cast<int64_t>(counts >> (12 * k) & 0xfff)];
    term.row = row;
    term.value = dy[f] * scale;
    counts += uint64_t{1} << (12 * k);
  }
  return counts;
}

// sum += the gradients that count.
inline void add_alive(int64_t features, float scale, const float* __restrict dy,
                      const uint8_t* __restrict winner, float* __restrict sum) {
  int64_t f = 0;
  for (; f + lanes <= features; f += lanes) {
    const vec alive = where_below(winner + f, pool_dead, mul(load(dy + f), broadcast(scale)));
    store(sum + f, add(load(sum + f), alive));
  }
  for (; f < features; ++f) sum[f] += winner[f] < pool_dead ? dy[f] * scale : 0.0f;
}

// ---------------------------------------------------------------------------------------------
// Geometry

// The part of x under a range of pooled rows, with its padding: what the patches of these rows
// read.
struct Band {
  int64_t rows, cols;      // of pixels
  int64_t top, left;       // of its first pixel in x; negative in the padding
  int64_t line;            // floats in a row
  int64_t step_h, step_w;  // from one position of the convolution to the next
  int64_t tap_h;           // from one row of the kernel to the next

  Band(const ConvPoolShape& p, int64_t begin, int64_t end) {
    const Conv2dShape& s = p.conv;
    rows = (2 * (end - begin) - 1) * s.stride_h + (s.kh - 1) * s.dilation_h + 1;
    cols = (2 * p.pw - 1) * s.stride_w + s.kw;
    top = 2 * begin * s.stride_h - s.pad_top;
    left = -s.pad_left;
    line = cols * s.c;
    step_h = s.stride_h * line;
    step_w = s.stride_w * s.c;
    tap_h = s.dilation_h * line;
  }
  bool inside(const Conv2dShape& s) const {
    return top >= 0 && left >= 0 && top + rows <= s.h && left + cols <= s.w;
  }
  // Uses the lines of x itself instead of a copy's.
  void use_lines_of(const Conv2dShape& s) {
    line = s.w * s.c;
    step_h = s.stride_h * line;
    tap_h = s.dilation_h * line;
  }
  int64_t size() const { return rows * line; }
};

// An image of dx from what was summed up in the band, zero outside of it.
void copy_from_band(const Band& band, const Conv2dShape& s, const float* from, float* image) {
  const int64_t begin = min(max(0, band.left), s.w);
  const int64_t end = max(begin, min(s.w, band.left + band.cols));
  for (int64_t row = 0; row < s.h; ++row, image += s.w * s.c) {
    const int64_t i = row - band.top;
    if (i < 0 || i >= band.rows) {
      clear(image, s.w * s.c);
      continue;
    }
    clear(image, begin * s.c);
    copy(image + begin * s.c, from + i * band.line + (begin - band.left) * s.c,
         (end - begin) * s.c);
    clear(image + end * s.c, (s.w - end) * s.c);
  }
}

// ---------------------------------------------------------------------------------------------
// Where the sparse gradients do not pay: the dense gradient, written out

bool sparse_fits(const ConvPoolShape& p) {
  const Conv2dShape& s = p.conv;
  constexpr int64_t most = int64_t{1} << 30;  // offsets of terms are 32-bit
  // One by one, as products of strides and padding need not fit 64 bits.
  const int64_t width = max(padded_w(s), s.w);
  if (padded_h(s) >= most || width >= most || s.c >= most || width * s.c >= most) return false;
  const Band band(p, 0, p.ph);
  return s.groups == 1 && s.dilation_w == 1 && band.rows * max(band.line, s.w * s.c) < most &&
         s.kh * s.kw * s.c * s.oc < most;
}

// Channels beyond which the rows hardly come from the first two levels of the cache any more, so
// that Winograd's products should be faster. Estimated, not measured.
constexpr int64_t most_sparse_channels = 256;
bool sparse_pays(const ConvPoolShape& p) {
  return sparse_fits(p) && math_mode() != MathMode::winograd4 &&
         math_mode() != MathMode::winograd6 &&
         (p.conv.c <= most_sparse_channels || !winograd_fits(p.conv));
}

float* dense_gradient(const ConvPoolShape& p, float scale, const float* dy, const uint8_t* winner) {
  const Conv2dShape& s = p.conv;
  const int64_t size = s.n * s.oh * s.ow * s.oc;
  float* const dense =
      static_cast<float*>(scratch(static_cast<size_t>(size) * sizeof(float), ScratchUse::composed));
  parallel_for(num_threads(), s.n * s.oh, [&](int64_t item, int) {
    const int64_t n = item / s.oh, oh = item % s.oh;
    float* const row = dense + item * s.ow * s.oc;
    if (oh / 2 >= p.ph) {
      clear(row, s.ow * s.oc);
      return;
    }
    for (int64_t ow = 0; ow < s.ow; ++ow) {
      float* const to = row + ow * s.oc;
      if (ow / 2 >= p.pw) {
        clear(to, s.oc);
        continue;
      }
      const int64_t at = ((n * p.ph + oh / 2) * p.pw + ow / 2) * s.oc;
      const int position = static_cast<int>(oh % 2 * 2 + ow % 2);
      for (int64_t f = 0; f < s.oc; ++f) {
        to[f] = winner[at + f] == position ? dy[at + f] * scale : 0.0f;
      }
    }
  });
  return dense;
}

// Of a row of the output, all windows; y and winner, which may be null, are pooled.
void pool_row(const ConvPoolShape& p, const float* top, float* y, uint8_t* winner) {
  const int64_t f = p.conv.oc;
  const float* bottom = top + p.conv.ow * f;
  for (int64_t to = 0; to < p.pw * f; to += f, top += 2 * f, bottom += 2 * f) {
    for (int64_t i = 0; i < f; i += lanes) {
      const int64_t count = min(lanes, f - i);
      pool_window(load_part(top + i, count), load_part(top + f + i, count),
                  load_part(bottom + i, count), load_part(bottom + f + i, count), count, y + to + i,
                  behind(winner, to + i));
    }
  }
}

void direct_pool(const ConvPoolShape& p, const float* x, const float* w, const float* b, float* y,
                 uint8_t* winner) {
  // Some images at a time, so that what is pooled still lies in the cache.
  constexpr int64_t bytes = 4 << 20;
  const Conv2dShape& s = p.conv;
  const int64_t image = s.oh * s.ow * s.oc;
  const int64_t images = max(1, min(s.n, bytes / (image * float_bytes)));
  // Pooled rows that are worth a thread's while.
  constexpr int64_t piece_size = 8 * 1024;
  const int64_t piece = ceil_div(piece_size, 2 * s.ow * s.oc);
  float* const dense = static_cast<float*>(
      scratch(static_cast<size_t>(images * image) * sizeof(float), ScratchUse::composed));
  for (int64_t n = 0; n < s.n; n += images) {
    Conv2dShape part = s;
    part.n = min(images, s.n - n);
    conv2d_direct(part, Activation::relu, x + n * s.h * s.w * s.c, w, b, dense);
    parallel_ranges(part.n * p.ph, piece, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = (n * p.ph + row) * p.pw * s.oc;
        pool_row(p, dense + row / p.ph * image + row % p.ph * 2 * s.ow * s.oc, y + at,
                 behind(winner, at));
      }
    });
  }
}

// ---------------------------------------------------------------------------------------------
// 3x3 kernels, where vectors are wide: see pool_windows.hpp

bool windows_pay(const ConvPoolShape& p) {
  // What Winograd's algorithm fits is what this fits: 3x3, strides, dilation and groups of 1.
  return windows_fit_registers && winograd_fits(p.conv) && p.conv.c >= lanes;
}

void windows_backward_data(const ConvPoolShape& p, float scale, const float* dy,
                           const uint8_t* winner, const float* w, float* dx) {
  const Conv2dShape& s = p.conv;
  Band band(p, 0, p.ph);
  const bool in_place = band.inside(s);
  if (in_place) band.use_lines_of(s);
  const int threads = num_threads();
  const int64_t slices = ceil_div(s.c, lanes);

  const int64_t scaled_size = slices * s.oc * window_taps * lanes;
  const int64_t band_size = in_place ? 0 : band.size();
  // [slice][feature][tap][lanes], with the gradients' scale.
  const auto scale_all = [&](float* scaled) {
    parallel_for(threads, slices * s.oc, [&](int64_t item, int) {
      const int64_t slice = item / s.oc, f = item % s.oc;
      float* to = scaled + item * window_taps * lanes;
      for (int64_t tap = 0; tap < window_taps; ++tap, to += lanes) {
        for (int64_t l = 0; l < lanes; ++l) {
          const int64_t c = slice * lanes + l;
          to[l] = c < s.c ? w[(tap * s.c + c) * s.oc + f] * scale : 0.0f;
        }
      }
    });
  };
  Scratch memory;
  const float* const scaled = kept_or_made(memory, KeptWeights::sparse, scaled_size, scale_all);

  parallel_for(threads, s.n, [&](int64_t n, int) {
    Scratch own;
    const int64_t band_at = own.reserve<float>(band_size);
    own.allocate(ScratchUse::worker);
    float* const image = dx + n * s.h * s.w * s.c;
    float* const sums = in_place ? image : own.at<float>(band_at);
    clear(sums, in_place ? s.h * s.w * s.c : band_size);
    float* const origin = in_place ? sums + (band.top * s.w + band.left) * s.c : sums;
    WindowRow row{};
    row.windows = p.pw;
    row.window = s.oc;
    row.line = band.line;
    row.pixel = s.c;
    for (int64_t f = 0; f < s.oc; f += window_features) {
      row.features = min(window_features, s.oc - f);
      for (int64_t slice = 0; slice < slices; ++slice) {
        row.channels = min(lanes, s.c - slice * lanes);
        row.weights = scaled + (slice * s.oc + f) * window_taps * lanes;
        for (int64_t ph = 0; ph < p.ph; ++ph) {
          const int64_t at = (n * p.ph + ph) * p.pw * s.oc + f;
          row.dy = dy + at;
          row.winner = winner + at;
          add_windows(row, origin + 2 * ph * band.line + slice * lanes);
        }
      }
    }
    if (!in_place) copy_from_band(band, s, sums, image);
  });
}

// Without branches, which random numbers would have guessed wrong.
inline void drop_values(int64_t count, uint32_t last_dropped, float scale,
                        const uint32_t* __restrict random, float* __restrict y,
                        uint8_t* __restrict winner) {
  for (int64_t i = 0; i < count; ++i) {
    const float kept = y[i] * scale;
    y[i] = random[i] > last_dropped ? kept : 0.0f;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t dropped = static_cast<uint8_t>(random[i] > last_dropped ? 0 : 0xff);
    winner[i] = static_cast<uint8_t>((winner[i] & ~dropped) | (pool_dead & dropped));
  }
}

}  // namespace

void conv2d_pool(const ConvPoolShape& p, const Dropout& d, const float* x, const float* w,
                 const float* b, float* y, uint8_t* winner) {
  if (const int side = winograd_side(p.conv, 2 * p.ph, 2 * p.pw); side > 0) {
    conv2d_winograd_pool(side, p, x, w, b, y, winner);
  } else {
    direct_pool(p, x, w, b, y, winner);
  }
  if (d.threshold == 0) return;
  drop_in_parallel(p.conv.n * p.ph * p.pw * p.conv.oc, d,
                   [&](int64_t i, int64_t count, const uint32_t* random, uint32_t last_dropped) {
                     drop_values(count, last_dropped, d.scale, random, y + i, winner + i);
                   });
}

// ---------------------------------------------------------------------------------------------
// Data gradient

void conv2d_pool_backward_data(const ConvPoolShape& p, float scale, const float* dy,
                               const uint8_t* winner, const float* w, float* dx) {
  const Conv2dShape& s = p.conv;
  if (s.n == 0) return;
  if (!sparse_pays(p)) {
    conv2d_backward_data(s, Activation::none, dense_gradient(p, scale, dy, winner), nullptr, w, dx);
    return;
  }
  if (windows_pay(p)) {
    windows_backward_data(p, scale, dy, winner, w, dx);
    return;
  }
  Band band(p, 0, p.ph);
  const bool in_place = band.inside(s);
  if (in_place) band.use_lines_of(s);
  const int64_t taps = s.kh * s.kw, row = s.kw * s.c, patch = taps * s.c;
  // Features are taken in blocks whose weights fit into half of a second-level cache.
  constexpr int64_t weights_bytes = 192 * 1024;
  constexpr int64_t most_block = 4095;  // their counts have 12 bits
  const int64_t block = max(1, min(min(s.oc, most_block), weights_bytes / (patch * float_bytes)));
  const int threads = num_threads();

  Scratch memory;
  const int64_t band_size = in_place ? 0 : band.size();
  const Pieces cut{s.kh, row};
  const int64_t pieces_at = memory.reserve<Piece>(cut.count());
  // [feature][kh][kw][c]
  const float* const rows = kept_or_made(memory, KeptWeights::sparse, s.oc * patch, [&](float* to) {
    parallel_for(threads, taps, [&](int64_t tap, int) {
      for (int64_t c = 0; c < s.c; ++c) {
        const float* from = w + (tap * s.c + c) * s.oc;
        for (int64_t f = 0; f < s.oc; ++f) to[f * patch + tap * s.c + c] = from[f];
      }
    });
  });
  Piece* const pieces = memory.at<Piece>(pieces_at);
  cut.list(pieces);

  parallel_for(threads, s.n, [&](int64_t n, int) {
    Scratch own;
    const int64_t terms_at = own.reserve<Term>(5 * block);
    const int64_t band_at = own.reserve<float>(band_size);
    own.allocate(ScratchUse::worker);
    Term* const terms = own.at<Term>(terms_at);
    float* const image = dx + n * s.h * s.w * s.c;
    float* const sums = in_place ? image : own.at<float>(band_at);
    clear(sums, in_place ? s.h * s.w * s.c : band_size);
    // Where the first position's patch begins.
    float* const origin = in_place ? sums + (band.top * s.w + band.left) * s.c : sums;
    for (int64_t first = 0; first < s.oc; first += block) {
      const int64_t features = min(block, s.oc - first);
      for (int64_t ph = 0; ph < p.ph; ++ph) {
        for (int64_t pw = 0; pw < p.pw; ++pw) {
          const int64_t at = ((n * p.ph + ph) * p.pw + pw) * s.oc + first;
          const uint64_t counts = sort_by_position(features, scale, dy + at, winner + at,
                                                   static_cast<int32_t>(first * patch),
                                                   static_cast<int32_t>(patch), block, terms);
          for (int k = 0; k < pool_dead; ++k) {
            const int64_t count = static_cast<int64_t>(counts >> (12 * k) & 0xfff);
            if (count == 0) continue;
            float* to = origin + (2 * ph + k / 2) * band.step_h + (2 * pw + k % 2) * band.step_w;
            for (const Piece* piece = pieces; piece < pieces + cut.count(); ++piece) {
              piece->add(terms + k * block, count, rows + piece->row * row + piece->column, row,
                         to + piece->row * band.tap_h + piece->column, band.tap_h, piece->last);
            }
          }
        }
      }
    }
    if (!in_place) copy_from_band(band, s, sums, image);
  });
}

// ---------------------------------------------------------------------------------------------
// Weight gradient

void conv2d_pool_backward_weights(const ConvPoolShape& p, float scale, const float* dy,
                                  const uint8_t* winner, const float* x, float* dw, float* db) {
  const Conv2dShape& s = p.conv;
  if (s.n == 0 || !sparse_pays(p)) {
    conv2d_backward_weights(s, Activation::none, dense_gradient(p, scale, dy, winner), nullptr, x,
                            dw, db);
    return;
  }
  // Pooled rows are taken in bands whose part of x fits into the first-level cache.
  constexpr int64_t band_bytes = 40 * 1024;
  int64_t band_rows = p.ph;
  while (band_rows > 1 && Band(p, 0, band_rows).size() * float_bytes > band_bytes) {
    --band_rows;
  }
  const int64_t row = s.kw * s.c, patch = s.kh * row;
  const int64_t most_terms = band_rows * p.pw;
  constexpr int64_t together_bytes = 12 * 1024;
  const int64_t together =
      max(8, together_bytes / (sum_vectors * lanes * float_bytes +
                               most_terms * static_cast<int64_t>(sizeof(Term))));
  constexpr int64_t most_chunks = 16;
  const int64_t chunks = min(s.n, most_chunks);
  const int threads = num_threads();
  // Where the chunks are too few to go round, their features are dealt out as well.
  const int64_t parts = min(s.oc, ceil_div(items_per_thread * threads, chunks));
  const int64_t part = ceil_div(s.oc, parts);

  Scratch memory;
  const int64_t sums_at = memory.reserve<float>(chunks * s.oc * patch);
  const int64_t bias_at = memory.reserve<float>(chunks * s.oc);
  const int64_t band_size = Band(p, 0, band_rows).size();
  const Pieces cut{s.kh, row};
  const int64_t pieces_at = memory.reserve<Piece>(cut.count());
  memory.allocate();
  Piece* const pieces = memory.at<Piece>(pieces_at);
  cut.list(pieces);
  float* const all_sums = memory.at<float>(sums_at);
  float* const all_bias = memory.at<float>(bias_at);

  parallel_for(threads, chunks * parts, [&](int64_t item, int) {
    const int64_t chunk = item / parts;
    const int64_t first = part_begin(s.oc, parts, item % parts);
    const int64_t features = part_begin(s.oc, parts, item % parts + 1) - first;
    // [feature][kh][kw][c]
    float* const sums = all_sums + (chunk * s.oc + first) * patch;
    float* const bias = all_bias + chunk * s.oc + first;
    clear(sums, features * patch);
    clear(bias, features);
    Scratch own;
    const int64_t terms_at = own.reserve<Term>(part * (most_terms + 1));
    const int64_t pixel_at = own.reserve<Term>(part);
    const int64_t counts_at = own.reserve<int32_t>(part);
    const int64_t band_at = own.reserve<float>(band_size);
    own.allocate(ScratchUse::worker);
    Term* const terms = own.at<Term>(terms_at);
    Term* const pixel = own.at<Term>(pixel_at);
    int32_t* const counts = own.at<int32_t>(counts_at);
    float* const copied = own.at<float>(band_at);

    const int64_t end = part_begin(s.n, chunks, chunk + 1);
    for (int64_t n = part_begin(s.n, chunks, chunk); n < end; ++n) {
      const float* const image = x + n * s.h * s.w * s.c;
      for (int64_t begin = 0; begin < p.ph; begin += band_rows) {
        const int64_t rows = min(band_rows, p.ph - begin);
        Band band(p, begin, begin + rows);
        const float* from = copied;
        if (band.inside(s)) {
          from = image + (band.top * s.w + band.left) * s.c;
          band.use_lines_of(s);
        } else {
          copy_padded(s, image, band.top, band.left, band.rows, band.cols, copied);
        }

        for (int64_t f = 0; f < features; ++f) counts[f] = 0;
        const int32_t offsets[pool_dead] = {0, static_cast<int32_t>(band.step_w),
                                            static_cast<int32_t>(band.step_h),
                                            static_cast<int32_t>(band.step_h + band.step_w)};
        for (int64_t ph = 0; ph < rows; ++ph) {
          for (int64_t pw = 0; pw < p.pw; ++pw) {
            const int64_t at = ((n * p.ph + begin + ph) * p.pw + pw) * s.oc + first;
            const int32_t origin = static_cast<int32_t>(2 * (ph * band.step_h + pw * band.step_w));
            int32_t rows_of[2 * pool_dead] = {};
            for (int k = 0; k < pool_dead; ++k) rows_of[k] = origin + offsets[k];
            sort_by_feature(features, scale, dy + at, winner + at, rows_of, most_terms + 1, pixel,
                            terms, counts);
            add_alive(features, scale, dy + at, winner + at, bias);
          }
        }
        // A few features at a time take their part of a piece, so that these, their terms and what
        // they read of x stay in the first-level cache.
        for (int64_t f0 = 0; f0 < features; f0 += together) {
          const int64_t f1 = min(f0 + together, features);
          for (const Piece* piece = pieces; piece < pieces + cut.count(); ++piece) {
            for (int64_t f = f0; f < f1; ++f) {
              piece->add(terms + f * (most_terms + 1), counts[f],
                         from + piece->row * band.tap_h + piece->column, band.tap_h,
                         sums + f * patch + piece->row * row + piece->column, row, piece->last);
            }
          }
        }
      }
    }
  });

  // Add the chunks up, in their order, and exchange the axes.
  const int64_t chunk_size = s.oc * patch;
  parallel_ranges(chunk_size, 4 * 1024, [&](int64_t begin, int64_t end) {
    add_arrays(all_sums, all_sums + chunk_size, chunks - 1, chunk_size, begin, end);
  });
  parallel_ranges(patch, 64, [&](int64_t begin, int64_t end) {
    for (int64_t f = 0; f < s.oc; ++f) {
      for (int64_t i = begin; i < end; ++i) dw[i * s.oc + f] = all_sums[f * patch + i];
    }
  });
  add_arrays(all_bias, all_bias + s.oc, chunks - 1, s.oc, 0, s.oc);
  if (db != nullptr) copy(db, all_bias, s.oc);
}

}  // namespace pyconv::cpu::PYCONV_ISA
