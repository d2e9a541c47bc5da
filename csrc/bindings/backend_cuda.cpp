// The CUDA backend, on a device or emulated: devices, streams, graphs, what the compiler made of
// the kernels.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../cuda/runtime.hpp"
#include "backend.hpp"

namespace pyconv::cuda {
extern const Operations operations;
}

namespace pyconv::bindings {

// The device has its own.
Surroundings::Surroundings() = default;
Surroundings::~Surroundings() = default;

namespace {

std::string version(int number) {  // CUDA's 13000 is 13.0
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

#ifdef PYCONV_EMULATED_DEVICE
// One stream for everything: kernels run inside their launch.
cudaStream_t stream_of_caller() {
  static const cudaStream_t stream = [] {
    cudaStream_t created = nullptr;
    cuda::check(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking), "stream");
    return created;
  }();
  return stream;
}
#else
// CuPy's current stream, of this thread and device.
cudaStream_t stream_of_caller() {
  // Never released: the interpreter may be gone when statics are destroyed.
  static const py::handle get_stream =
      py::object(py::module_::import("cupy.cuda").attr("get_current_stream")).release();
  return reinterpret_cast<cudaStream_t>(py::cast<uintptr_t>(get_stream().attr("ptr")));
}
#endif

// Asked once: without a driver every call would look for one again.
cudaError_t count_devices(int& count) {
  static int known = 0;
  static const cudaError_t error = cudaGetDeviceCount(&known);
  count = error == cudaSuccess ? known : 0;
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

int device_count() {
  int count = 0;
  (void)count_devices(count);
  return count;
}

std::string unavailable_reason() {
  int count = 0;
  const cudaError_t error = count_devices(count);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    (void)cudaDriverGetVersion(&driver);
    return driver == 0 ? "no NVIDIA driver was found"
                       : "the NVIDIA driver supports CUDA " + version(driver) +
                             "; this build needs " + version(CUDART_VERSION);
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    return "no CUDA device was found";
  }
  if (error != cudaSuccess) {
    return std::string(cudaGetErrorName(error)) + " (" + cudaGetErrorString(error) + ")";
  }
  return "";
}

std::vector<std::string> architectures() {
  std::vector<std::string> all;
  std::string word;
  for (const char* c = PYCONV_CUDA_ARCHITECTURES;; ++c) {
    if (*c != ' ' && *c != '\0') {
      word += *c;
      continue;
    }
    if (!word.empty()) all.push_back(word);
    word.clear();
    if (*c == '\0') return all;
  }
}

cudaDeviceProp properties(int device) {
  cudaDeviceProp p{};
  cuda::check(cudaGetDeviceProperties(&p, device), "cudaGetDeviceProperties");
  return p;
}
int current_device() {
  int device = 0;
  cuda::check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

py::list devices() {
  py::list all;
  for (int i = 0; i < device_count(); ++i) {
    const cudaDeviceProp p = properties(i);
    py::dict device;
    device["name"] = std::string(p.name);
    device["compute_capability"] = std::to_string(p.major) + "." + std::to_string(p.minor);
    device["multiprocessors"] = p.multiProcessorCount;
    device["memory"] = p.totalGlobalMem;
    all.append(device);
  }
  return all;
}

std::string driver_version() {
  int driver = 0;
  cuda::check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  return version(driver);
}

py::list kernels() {
  const int most_threads = properties(current_device()).maxThreadsPerMultiProcessor;
  py::list all;
  for (const cuda::Kernel& kernel : cuda::kernels()) {
    cudaFuncAttributes a{};
    int blocks = 0;
    cuda::check(cudaFuncGetAttributes(&a, kernel.function), kernel.name.c_str());
    cuda::check(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel.function, kernel.threads, 0),
        kernel.name.c_str());
    py::dict entry;
    entry["name"] = kernel.name;
    entry["threads"] = kernel.threads;
    entry["registers"] = a.numRegs;
    entry["shared_bytes"] = a.sharedSizeBytes;
    entry["local_bytes"] = a.localSizeBytes;
    entry["occupancy"] = static_cast<double>(blocks) * kernel.threads / most_threads;
    all.append(entry);
  }
  return all;
}

std::string math_mode() { return cuda::math_mode() == cuda::MathMode::tf32 ? "tf32" : "fp32"; }

void set_math_mode(const std::string& mode) {
  if (mode == "fp32") {
    cuda::set_math_mode(cuda::MathMode::fp32);
    return;
  }
  if (mode != "tf32") {
    throw py::value_error("math_mode: expected 'fp32' or 'tf32'. Received: '" + mode + "'.");
  }
  const cudaDeviceProp p = properties(current_device());
  if (p.major < 8) {
    throw py::value_error("math_mode: 'tf32' needs a device of compute capability 8.0 or later. " +
                          std::string("Received: ") + p.name + ", " + std::to_string(p.major) +
                          "." + std::to_string(p.minor) + ". Use 'fp32'.");
  }
  cuda::set_math_mode(cuda::MathMode::tf32);
}

void synchronize() {
  const cudaStream_t stream = stream_of_caller();
  py::gil_scoped_release release;
  cuda::check(cudaStreamSynchronize(stream), "synchronize");
}

// A sequence of launches, recorded once and replayed as one.
class Graph {
 public:
  Graph() = default;
  ~Graph() { reset(); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void begin_capture() {
    reset();
    stream_ = stream_of_caller();
    cuda::check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
                "begin of a graph");
    capturing_ = true;
  }
  void end_capture() {
    if (!capturing_) throw cuda::Error("end of a graph: no capture was begun");
    capturing_ = false;
    cuda::check(cudaStreamEndCapture(stream_, &graph_), "end of a graph");
    cuda::check(cudaGraphInstantiate(&executable_, graph_, 0), "instantiation of a graph");
  }
  void launch() {
    if (executable_ == nullptr) throw cuda::Error("launch of a graph: it was not captured");
    const cudaStream_t stream = stream_of_caller();
    py::gil_scoped_release release;
    cuda::check(cudaGraphLaunch(executable_, stream), "launch of a graph");
  }
  // Ends a capture that failed, and forgets what was recorded.
  void reset() {
    if (capturing_) {
      cudaGraph_t broken = nullptr;
      (void)cudaStreamEndCapture(stream_, &broken);
      if (broken != nullptr) (void)cudaGraphDestroy(broken);
      (void)cudaGetLastError();
      capturing_ = false;
    }
    if (executable_ != nullptr) (void)cudaGraphExecDestroy(executable_);
    if (graph_ != nullptr) (void)cudaGraphDestroy(graph_);
    executable_ = nullptr;
    graph_ = nullptr;
  }

 private:
  bool capturing_ = false;
  cudaStream_t stream_ = nullptr;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

void begin_call() { cuda::set_stream(stream_of_caller()); }

const Operations& operations() { return cuda::operations; }

void define_backend(py::module_& m) {
  using py::arg;
  m.doc() = "pyconv's CUDA kernels. Use them through pyconv.kernels.";
  py::register_local_exception<cuda::Error>(m, "Error", PyExc_RuntimeError);
  m.def("device_count", &device_count, "CUDA devices; 0 without a driver.");
  m.def("unavailable_reason", &unavailable_reason, "Why there is no device; empty if there is.");
  m.def("toolkit_version", [] { return version(CUDART_VERSION); });
  m.def("driver_version", &driver_version);
  m.def("architectures", &architectures, "Compute capabilities that this build has code for.");
  m.def("devices", &devices);
  m.def("kernels", &kernels, "What the compiler made of each kernel on the current device.");
  m.def("math_mode", &math_mode);
  m.def("set_math_mode", &set_math_mode, arg("mode"));
  m.def("synchronize", &synchronize, "Waits for the current stream.");
  py::class_<Graph>(m, "Graph")
      .def(py::init<>())
      .def("begin_capture", &Graph::begin_capture)
      .def("end_capture", &Graph::end_capture)
      .def("launch", &Graph::launch)
      .def("discard", &Graph::reset);
}

}  // namespace pyconv::bindings
