// What the one binding source needs from the backend that it is compiled for: backend_cpu.cpp,
// backend_cuda.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "../ops.hpp"

namespace pyconv::bindings {

namespace py = pybind11;

// Looks where the caller's kernels run, before their arrays are looked at: what other libraries
// have under way on those is waited for there. With the GIL held, as it may ask Python.
void begin_call();

// The kernels to call now.
const Operations& operations();

// Adds what only this backend has: instruction sets and threads, or devices and streams.
void define_backend(py::module_& module);

// What is as kernels want it as long as this lives, and then as it was: on the CPU, how it
// computes.
class Surroundings {
 public:
  Surroundings();
  ~Surroundings();
  Surroundings(const Surroundings&) = delete;
  Surroundings& operator=(const Surroundings&) = delete;

 private:
  [[maybe_unused]] uint64_t before_ = 0;
};

// One call of a kernel, after begin_call: `Call()->relu(...)`. The GIL is released as long as it
// lives.
class Call {
 public:
  Call() : operations_(operations()) {}
  const Operations* operator->() const { return &operations_; }

 private:
  const Operations& operations_;
  py::gil_scoped_release release_;
  Surroundings surroundings_;
};

}  // namespace pyconv::bindings
