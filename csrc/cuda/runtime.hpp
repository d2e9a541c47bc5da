// What the CUDA kernels need from the machine: the stream, scratch memory, errors as exceptions.
// Compiled once, with the host compiler.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace pyconv::cuda {

// A CUDA call or a kernel failed; the message names it.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws Error unless `error` is cudaSuccess.
void check(cudaError_t error, const char* what);

// Looks for the error of the launch just made. Kernels run asynchronously, so a fault inside one
// may show at a later call and be blamed on that; PYCONV_CUDA_SYNC=1 waits for every kernel and
// names the right one.
void check_launch(const char* kernel);

// The stream on which the calling thread launches. Set before every call from Python.
cudaStream_t stream();
void set_stream(cudaStream_t stream);

// How convolutions multiply: in float32, or with factors rounded to TF32 on tensor cores.
enum class MathMode : int { fp32, tf32 };
MathMode math_mode();
void set_math_mode(MathMode mode);

// Device memory that lives until the destructor, in the order of the stream: no synchronisation,
// and legal while the stream is being captured.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  template <class T>
  T* at(size_t byte_offset = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte_offset);
  }

 private:
  void* data_ = nullptr;
  cudaStream_t stream_;
};

// A kernel as `pyconv info` lists it.
struct Kernel {
  std::string name;
  const void* function;
  int threads;  // a block
};
// Every kernel that was registered, in no particular order.
const std::vector<Kernel>& kernels();
// Registers a kernel; see KernelOf in launch.cuh.
struct Register {
  Register(const std::string& name, const void* function, int threads);
};

}  // namespace pyconv::cuda
