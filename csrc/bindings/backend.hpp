// What the one binding source needs from the backend that it is compiled for: backend_cpu.cpp,
// backend_cuda.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include "../ops.hpp"

namespace pyconv::bindings {

namespace py = pybind11;

// The kernels to call now. With the GIL held: a backend may ask Python for the current stream.
const Operations& begin_call();

// Adds what only this backend has: instruction sets and threads, or devices and streams.
void define_backend(py::module_& module);

// One call of a kernel: `Call()->relu(...)`. The GIL is released as long as it lives.
class Call {
 public:
  Call() : operations_(begin_call()) {}
  const Operations* operator->() const { return &operations_; }

 private:
  const Operations& operations_;
  py::gil_scoped_release release_;
};

}  // namespace pyconv::bindings
