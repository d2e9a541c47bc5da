// Included by every source that is compiled once per instruction set. The build defines
//   PYCONV_ISA          the path's name, which is also its namespace: avx512, avx2 or portable
//   PYCONV_SIMD_HEADER  the vector interface of that path
//
// Such a source may define nothing outside pyconv::cpu::PYCONV_ISA and may include no header whose
// inline functions or templates the compiler could emit as shared (weak) symbols: the linker keeps
// one copy of those, and a copy built for AVX-512 would crash older machines. So: no <algorithm>,
// no <vector>; helpers below are static. tests/test_package.py checks the objects.
#pragma once

#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include <cstddef>
#include <cstdint>

#include "../ops.hpp"
#include "runtime.hpp"
#include PYCONV_SIMD_HEADER

#define PYCONV_STRINGIFY_(x) #x
#define PYCONV_STRINGIFY(x) PYCONV_STRINGIFY_(x)

namespace pyconv::cpu::PYCONV_ISA {

constexpr int64_t float_bytes = sizeof(float);

static constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
template <class T>
static inline T get(const Scalar<T>& scalar) {
  return scalar.pointer != nullptr ? *scalar.pointer : scalar.value;
}
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where an array goes on; null stays null.
template <class T>
static inline T* behind(T* array, int64_t count) {
  return array == nullptr ? nullptr : array + count;
}

// The first `count` lanes, usually all of them.
static inline vec load_part(const float* p, int64_t count) {
  return count == lanes ? load(p) : load_n(p, count);
}
static inline void store_part(float* p, vec v, int64_t count) {
  if (count == lanes) {
    store(p, v);
  } else {
    store_n(p, v, count);
  }
}

// Start of part `index` when `total` is cut into `parts` as evenly as possible.
static inline int64_t part_begin(int64_t total, int64_t parts, int64_t index) {
  const int64_t size = total / parts, larger = total % parts;
  return index * size + min(index, larger);
}

// The sizes of those parts, one after the other: divides once, for loops in which a division shows.
class Parts {
 public:
  Parts(int64_t total, int64_t parts, int64_t first = 0)
      : size_(parts > 0 ? total / parts : 0), larger_(total - size_ * parts - first) {}
  int64_t next() { return size_ + (larger_-- > 0 ? 1 : 0); }

 private:
  int64_t size_, larger_;  // size of a part; how many of those to come have one more
};

// body(begin, size) for each of those parts.
template <class Body>
static inline void for_parts(int64_t total, int64_t parts, const Body& body) {
  Parts sizes(total, parts);
  for (int64_t part = 0, begin = 0; part < parts; ++part) {
    const int64_t size = sizes.next();
    body(begin, size);
    begin += size;
  }
}

static inline void copy(float* to, const float* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}
// dst = src where y > 0, else 0.
static inline void masked_copy(const float* src, const float* y, float* dst, int64_t size) {
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) store(dst + i, where_positive(load(y + i), load(src + i)));
  for (; i < size; ++i) dst[i] = y[i] > 0.0f ? src[i] : 0.0f;
}
// to[j, i] = from[i, j] for i and j below 4. By name where there are shuffles for it: compilers
// take such vectors apart into single numbers.
static inline void transpose_4x4(const float* from, int64_t from_row, float* to, int64_t to_row) {
#ifdef __SSE__
  __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_row);
  __m128 c = _mm_loadu_ps(from + 2 * from_row), d = _mm_loadu_ps(from + 3 * from_row);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a);
  _mm_storeu_ps(to + to_row, b);
  _mm_storeu_ps(to + 2 * to_row, c);
  _mm_storeu_ps(to + 3 * to_row, d);
#else
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 4; ++j) to[j * to_row + i] = from[i * from_row + j];
  }
#endif
}
// to[j, i] = from[i, j] for i in [0, rows), j in [0, cols); squares of four by four in registers.
static inline void transpose(const float* from, int64_t from_row, int64_t rows, int64_t cols,
                             float* to, int64_t to_row) {
  constexpr int64_t side = 4;
  if (rows < side || cols < side) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) to[j * to_row + i] = from[i * from_row + j];
    }
    return;
  }
  // The last squares begin where they are whole.
  for (int64_t next_i = 0; next_i < rows; next_i += side) {
    const int64_t i = min(next_i, rows - side);
    for (int64_t next_j = 0; next_j < cols; next_j += side) {
      const int64_t j = min(next_j, cols - side);
      transpose_4x4(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
    }
  }
}
// to[i] += from[i] + from[step + i] + ... of `count` arrays, one after the other, for i in [begin,
// end).
static inline void add_arrays(float* to, const float* from, int64_t count, int64_t step,
                              int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += lanes) {
    const int64_t part = min(lanes, end - i);
    vec sum = load_part(to + i, part);
    for (int64_t array = 0; array < count; ++array) {
      sum = add(sum, load_part(from + array * step + i, part));
    }
    store_part(to + i, sum, part);
  }
}
static inline void clear(float* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = 0.0f;
}

// Work items per thread: enough that a thread that is held up does not hold up the others.
constexpr int64_t items_per_thread = 4;
// Values that a loop with little arithmetic is through with before a second thread has begun.
constexpr int64_t few_values = 16 * 1024;

// body(begin, end) over [0, size) in pieces worth a thread's while. Elements are independent, so
// where the pieces end does not show in the result.
template <class Body>
static inline void parallel_ranges(int64_t size, int64_t piece, const Body& body) {
  parallel_for(num_threads(), ceil_div(size, piece),
               [&](int64_t item, int) { body(item * piece, min((item + 1) * piece, size)); });
}

// body(row_begin, row_end, channel_begin, channel_end) over rows of pixels. Where the rows are too
// few to go round, they are cut along the channels too, between cache lines. Elements are
// independent, as above.
template <class Body>
static inline void parallel_rows(int64_t rows, int64_t channels, const Body& body) {
  constexpr int64_t line = 16;
  const int threads = num_threads();
  const int64_t wanted = items_per_thread * threads, lines = ceil_div(channels, line);
  const int64_t row_parts = min(rows, wanted);
  const int64_t line_parts = min(lines, ceil_div(wanted, max(row_parts, 1)));
  parallel_for(threads, row_parts * line_parts, [&](int64_t item, int) {
    const int64_t row_part = item / line_parts, line_part = item % line_parts;
    body(part_begin(rows, row_parts, row_part), part_begin(rows, row_parts, row_part + 1),
         line * part_begin(lines, line_parts, line_part),
         min(channels, line * part_begin(lines, line_parts, line_part + 1)));
  });
}

// Cuts the calling thread's scratch memory into arrays. Sizes are collected first, since the memory
// is one allocation.
class Scratch {
 public:
  // Returns a handle: the array's offset. Every array starts on a cache line.
  template <class T>
  int64_t reserve(int64_t count) {
    const int64_t offset = bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return offset;
  }
  void allocate(ScratchUse use = ScratchUse::kernel) {
    base_ = static_cast<char*>(scratch(static_cast<size_t>(bytes_), use));
  }
  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }

 private:
  int64_t bytes_ = 0;
  char* base_ = nullptr;
};

// The weights in this layout, `size` floats that make(to) writes the first time.
template <class Make>
static inline const float* get_kept(KeptWeights& kept, KeptWeights::Layout layout, int64_t size,
                                    const Make& make) {
  return kept.get(
      layout, static_cast<size_t>(size) * sizeof(float),
      [](void* context, float* to) { (*static_cast<const Make*>(context))(to); },
      const_cast<Make*>(&make));
}

// The same where nobody keeps them: then in this memory, which is allocated here, with what was
// reserved before.
template <class Make>
static inline const float* kept_or_made(Scratch& memory, KeptWeights::Layout layout, int64_t size,
                                        const Make& make) {
  KeptWeights* const kept = kept_weights();
  const int64_t at = memory.reserve<float>(kept != nullptr ? 0 : size);
  memory.allocate();
  if (kept != nullptr) return get_kept(*kept, layout, size, make);
  make(memory.at<float>(at));
  return memory.at<float>(at);
}

}  // namespace pyconv::cpu::PYCONV_ISA
