#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "launchers.hpp"

namespace py = pybind11;

namespace {

using Array = py::array_t<float, py::array::c_style>;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorName(error));
}

int extent(const Array& array, int dimension) { return static_cast<int>(array.shape(dimension)); }

void transpose(const Array& in, Array& out, float scale, bool raise_limit, Bug bug) {
  check(launch_transpose(in.data(), out.mutable_data(), extent(in, 0), extent(in, 1), scale,
                         raise_limit, bug, nullptr));
  check(cudaStreamSynchronize(nullptr));
}

void gemm(const Array& a, const Array& b, Array& c, Bug bug) {
  check(launch_gemm(a.data(), b.data(), c.mutable_data(), extent(a, 0), extent(b, 1), extent(a, 1),
                    bug, nullptr));
  check(cudaStreamSynchronize(nullptr));
}

}  // namespace

PYBIND11_MODULE(emulated, module) {
  py::enum_<Bug>(module, "Bug")
      .value("NONE", Bug::kNone)
      .value("MISSING_BARRIER", Bug::kMissingBarrier)
      .value("OUT_OF_BOUNDS", Bug::kOutOfBounds)
      .value("MISSING_WAIT", Bug::kMissingWait)
      .value("NEVER_RAISED", Bug::kNeverRaised);
  module.def("transpose", &transpose, py::arg("in"), py::arg("out").noconvert(),
             py::arg("scale") = 1.f, py::arg("raise_limit") = true, py::arg("bug") = Bug::kNone);
  module.def("gemm", &gemm, py::arg("a"), py::arg("b"), py::arg("c").noconvert(),
             py::arg("bug") = Bug::kNone);
}
