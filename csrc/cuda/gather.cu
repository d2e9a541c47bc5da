// A batch out of a data set that lies in device memory, converted to float:
//
//   gather_floats, gather_bytes  out[i, :] = scale * source[indices[i], :]      overwrites out
//
// Indices are clipped to the rows that exist: they lie in device memory, where nobody checked them.
#include <type_traits>

#include "launch.cuh"

namespace pyconv::cuda {

namespace {

constexpr int threads = 256;

// `row` counts packs.
template <class T, int lanes>
__global__ void __launch_bounds__(threads)
    gather_kernel(int64_t n, int64_t row, int64_t source_rows,
                  const Pack<T, lanes>* __restrict__ source, const int64_t* __restrict__ indices,
                  float scale, Pack<float, lanes>* __restrict__ out) {
  for_each_index(n * row, [&](int64_t i) {
    const int64_t item = i / row;
    int64_t from = indices[item];
    if (from > source_rows - 1) from = source_rows - 1;
    if (from < 0) from = 0;
    const Pack<T, lanes> values = source[from * row + (i - item * row)];
    Pack<float, lanes> scaled;
    for (int l = 0; l < lanes; ++l) scaled.lane[l] = scale * static_cast<float>(values.lane[l]);
    out[i] = scaled;
  });
}

template <class T, int lanes>
const KernelOf kernel{std::is_same<T, float>::value ? "gather_floats" : "gather_bytes",
                      gather_kernel<T, lanes>, threads, lanes == 4 ? " (4 values)" : ""};

template <int lanes, class T>
void launch(int64_t n, int64_t row, int64_t source_rows, const T* source, const int64_t* indices,
            float scale, float* out) {
  kernel<T, lanes>(grid_for(n * row / lanes, threads), n, row / lanes, source_rows,
                   reinterpret_cast<const Pack<T, lanes>*>(source), indices, scale,
                   reinterpret_cast<Pack<float, lanes>*>(out));
}

template <class T>
void gather(int64_t n, int64_t row, int64_t source_rows, const T* source, const int64_t* indices,
            float scale, float* out) {
  if (n == 0 || row == 0) return;
  const bool packs = row % 4 == 0 && aligned_to_four(source) && aligned_to_four(out);
  const auto launcher = packs ? launch<4, T> : launch<1, T>;
  launcher(n, row, source_rows, source, indices, scale, out);
}

}  // namespace

void gather_floats(int64_t n, int64_t row, int64_t source_rows, const float* source,
                   const int64_t* indices, float scale, float* out) {
  gather(n, row, source_rows, source, indices, scale, out);
}

void gather_bytes(int64_t n, int64_t row, int64_t source_rows, const uint8_t* source,
                  const int64_t* indices, float scale, float* out) {
  gather(n, row, source_rows, source, indices, scale, out);
}

}  // namespace pyconv::cuda
