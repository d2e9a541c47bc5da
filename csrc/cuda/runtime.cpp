#include "runtime.hpp"

#include <atomic>
#include <cstdlib>

#ifdef PYCONV_EMULATED_DEVICE
extern "C" const char* ptxcpu_last_error_message();
#endif

namespace pyconv::cuda {

namespace {

thread_local cudaStream_t current_stream = nullptr;
std::atomic<MathMode> current_mode{MathMode::fp32};

std::vector<Kernel>& registry() {
  static std::vector<Kernel> all;
  return all;
}

bool synchronous() {
  static const bool on = [] {
    const char* value = std::getenv("PYCONV_CUDA_SYNC");
    return value != nullptr && *value != '\0' && *value != '0';
  }();
  return on;
}

bool capturing() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(stream(), &status) == cudaSuccess &&
         status != cudaStreamCaptureStatusNone;
}

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::string text =
      std::string(what) + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) + ")";
#ifdef PYCONV_EMULATED_DEVICE
  const std::string details = ptxcpu_last_error_message();
  if (!details.empty()) text += ": " + details;
#endif
  throw Error(text);
}

void check_launch(const char* kernel) {
  check(cudaGetLastError(), kernel);
  if (synchronous() && !capturing()) check(cudaStreamSynchronize(stream()), kernel);
}

cudaStream_t stream() { return current_stream; }
void set_stream(cudaStream_t stream) { current_stream = stream; }

MathMode math_mode() { return current_mode.load(std::memory_order_relaxed); }
void set_math_mode(MathMode mode) { current_mode.store(mode, std::memory_order_relaxed); }

Workspace::Workspace(size_t bytes) : stream_(stream()) {
  if (bytes > 0) check(cudaMallocAsync(&data_, bytes, stream_), "scratch memory");
}
Workspace::~Workspace() {
  // A failure here is sticky and shows at the next call.
  if (data_ != nullptr) (void)cudaFreeAsync(data_, stream_);
}

const std::vector<Kernel>& kernels() { return registry(); }

Register::Register(const std::string& name, const void* function, int threads) {
  registry().push_back({name, function, threads});
}

}  // namespace pyconv::cuda
