// The CPU backend: instruction sets and threads.
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>

#include "../cpu/arithmetic.hpp"
#include "../cpu/cgroup.hpp"
#include "../cpu/dispatch.hpp"
#include "../cpu/runtime.hpp"
#include "../cpu/sequence.hpp"
#include "../cpu/warp_affine.hpp"
#include "array.hpp"
#include "backend.hpp"

namespace pyconv::bindings {

void begin_call() {}

Surroundings::Surroundings() : before_(cpu::set_arithmetic_for_kernels()) {}
Surroundings::~Surroundings() { cpu::set_arithmetic(before_); }

const Operations& operations() {
  return cpu::Sequence::recording() ? cpu::Sequence::recorder() : cpu::operations();
}

namespace {

// Floating-point operations per second that the path in use reaches in registers, best of some
// runs.
double measure_peak(double seconds) {
  const Call call;
  using clock = std::chrono::steady_clock;
  const auto timed = [&](int64_t iterations) {
    const auto start = clock::now();
    const double flops = call->peak_flops(iterations);
    return flops / std::chrono::duration<double>(clock::now() - start).count();
  };
  constexpr int64_t iterations = 1 << 20;
  double best = timed(iterations);
  const auto end = clock::now() + std::chrono::duration<double>(seconds);
  while (clock::now() < end) best = std::max(best, timed(iterations));
  return best;
}

// The number of a name among those of an enumeration.
template <class Enumeration, size_t count>
Enumeration number_of(const char* const (&names)[count], const std::string& name,
                      const std::string& expected) {
  for (size_t i = 0; i < count; ++i) {
    if (name == names[i]) return static_cast<Enumeration>(i);
  }
  throw py::value_error(expected + ". Received: '" + name + "'.");
}

// As in cpu::MathMode.
constexpr const char* math_modes[] = {"fp32", "direct", "winograd4", "winograd6"};

void set_math_mode(const std::string& mode) {
  cpu::set_math_mode(number_of<cpu::MathMode>(
      math_modes, mode,
      "math_mode: expected 'fp32', 'direct', 'winograd4' or 'winograd6' on the device 'cpu'"));
}

// As in cpu::PairMode.
constexpr const char* pair_modes[] = {"fast", "never", "always"};

void set_pair_mode(const std::string& mode) {
  cpu::set_pair_mode(number_of<cpu::PairMode>(pair_modes, mode,
                                              "pair_mode: expected 'fast', 'never' or 'always'"));
}

int thread_count(const char* name, int64_t count) {
  constexpr int64_t most = 1024;
  if (count < 1 || count > most) {
    throw py::value_error(std::string(name) + ": expected a count from 1 to " +
                          std::to_string(most) + ". Received: " + std::to_string(count) + ".");
  }
  return static_cast<int>(count);
}

void set_num_threads(int64_t count) { cpu::set_num_threads(thread_count("num_threads", count)); }

// As in cpu::FillMode.
constexpr const char* fill_modes[] = {"nearest", "constant", "reflect", "wrap"};

cpu::FillMode fill_mode_of(const std::string& name) {
  return number_of<cpu::FillMode>(fill_modes, name,
                                  "fill_mode: expected 'nearest', 'constant', 'reflect' or 'wrap'");
}

// Augmentation happens on the host whatever the device is, so this is no entry of the table.
void warp_affine(const py::object& x_, const py::object& indices_, const py::object& matrices_,
                 const py::object& out_, const std::string& fill_mode, float cval,
                 int64_t threads_) {
  const Array x = input(x_, "x"), out = output(out_, "out");
  const Array indices(indices_, "indices", Array::Access::read, "int64");
  const Array matrices(matrices_, "matrices", Array::Access::read, "float64");
  const cpu::FillMode fill = fill_mode_of(fill_mode);
  const int threads = thread_count("threads", threads_);
  x.require({any, any, any, any}, "(n, height, width, channels)");
  for (size_t axis = 1; axis < 4; ++axis) {
    if (x.dim(axis) < 1) {
      throw py::value_error("x: expected at least one row, column and channel. Received shape " +
                            to_text(x.shape()) + ".");
    }
  }
  indices.require({any}, "one index an image of the result");
  const cpu::WarpShape shape{indices.dim(0), x.dim(1), x.dim(2), x.dim(3)};
  matrices.require({shape.n, 2, 3}, "one matrix an image of the result");
  out.require({shape.n, shape.h, shape.w, shape.c}, "one image an index");
  require_apart({&out}, {&x, &indices, &matrices});
  const auto* index = static_cast<const int64_t*>(indices.data());
  for (int64_t i = 0; i < shape.n; ++i) {
    if (index[i] < 0 || index[i] >= x.dim(0)) {
      throw py::value_error("indices: expected values from 0 to below " + std::to_string(x.dim(0)) +
                            ", the number of images. Received: " + std::to_string(index[i]) + ".");
    }
  }
  const auto* matrix = static_cast<const double*>(matrices.data());
  for (int64_t i = 0; i < 6 * shape.n; ++i) {
    if (!std::isfinite(matrix[i])) {
      throw py::value_error(
          "matrices: expected finite numbers. Received: " + std::to_string(matrix[i]) +
          " in matrix " + std::to_string(i / 6) + ".");
    }
  }
  const py::gil_scoped_release release;
  cpu::warp_affine(shape, fill, cval, x.floats(), index, matrix, out.floats(), threads);
}

void run_sequence(cpu::Sequence& sequence, const py::object& x_, const py::object& y_) {
  const Array x = input(x_, "x"), y = output(y_, "out");
  const int64_t in = sequence.in(), out = sequence.out();
  if (in == 0) throw py::value_error("sequence: expected at least one kernel to be recorded.");
  const int64_t n = x.shape().empty() ? 0 : x.dim(0);
  if (x.shape().empty() || x.size() != n * in) {
    throw py::value_error("x: expected samples of " + std::to_string(in) +
                          " values. Received shape " + to_text(x.shape()) + ".");
  }
  if (y.size() != n * out) {
    throw py::value_error("out: expected " + std::to_string(n) + " samples of " +
                          std::to_string(out) + " values. Received shape " + to_text(y.shape()) +
                          ".");
  }
  require_apart({&y}, {&x});
  const py::gil_scoped_release release;
  const Surroundings surroundings;
  sequence.run(n, x.floats(), y.floats());
}

}  // namespace

void define_backend(py::module_& m) {
  using py::arg;
  m.doc() = "pyconv's CPU kernels. Use them through pyconv.kernels.";
  m.def("isa", [] { return cpu::operations().isa; }, "The instruction set in use.");
  m.def("vector_lanes", [] { return cpu::operations().vector_lanes; }, "Floats in a vector of it.");
  m.def("available_isas", &cpu::available, "What this machine can run, fastest first.");
  m.def("set_isa", &cpu::select, arg("name"));
  m.def("num_threads", &cpu::num_threads);
  m.def("set_num_threads", &set_num_threads, arg("count"));
  m.def("granted_cpus", &cpu::granted_cpus, arg("root") = "",
        "CPUs' worth of time that control groups grant; 0: no limit.");
  m.def("math_mode", [] { return math_modes[static_cast<int>(cpu::math_mode())]; });
  m.def("set_math_mode", &set_math_mode, arg("mode"));
  m.def(
      "pair_mode", [] { return pair_modes[static_cast<int>(cpu::pair_mode())]; },
      "Where numbers of bfloat16 are multiplied in pairs.");
  m.def("set_pair_mode", &set_pair_mode, arg("mode"));
  py::class_<cpu::Sequence>(m, "Sequence", "A network's forward pass as one call.")
      .def(py::init<>())
      .def("begin", &cpu::Sequence::begin)
      .def("end", &cpu::Sequence::end)
      .def("__len__", &cpu::Sequence::size)
      .def("run", &run_sequence, arg("x"), arg("out"));
  m.def("warp_affine", &warp_affine, arg("x"), arg("indices"), arg("matrices"), arg("out"),
        arg("fill_mode"), arg("cval"), arg("threads"));
  m.def("measure_peak", &measure_peak, arg("seconds") = 0.2);
#ifdef PYCONV_BREAK_A_TAP
  m.attr("breaks_a_tap") = true;
#endif
}

}  // namespace pyconv::bindings
