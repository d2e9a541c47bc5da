// Arrays on a CUDA device: CuPy's and everything else that has __cuda_array_interface__.
// https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, version 3.
#include <pybind11/stl.h>

#include "../cuda/runtime.hpp"
#include "array.hpp"

namespace pyconv::bindings {

namespace {

struct Dtype {
  const char* name;
  const char* typestr;  // native byte order: every device is little-endian
  int64_t bytes;
};
constexpr Dtype dtypes[] = {{"float32", "<f4", 4},
                            {"uint8", "|u1", 1},
                            {"int32", "<i4", 4},
                            {"int64", "<i8", 8},
                            {"uint64", "<u8", 8}};

const Dtype& dtype_of(const std::string& name) {
  for (const Dtype& dtype : dtypes) {
    if (name == dtype.name) return dtype;
  }
  throw std::logic_error("no such dtype: " + name);
}

std::string text(const py::handle& object) { return std::string(py::str(object)); }

// Lets the kernels' stream wait for what another library has under way on its stream.
void wait_for(const py::object& stream, const char* name) {
  if (stream.is_none()) return;
  // 1 and 2 mean the default streams, which are handles of these values to the runtime too.
  const auto theirs = reinterpret_cast<cudaStream_t>(py::cast<uintptr_t>(stream));
  if (theirs == cuda::stream()) return;
  cudaEvent_t event = nullptr;
  cuda::check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), name);
  cudaError_t error = cudaEventRecord(event, theirs);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(cuda::stream(), event, 0);
  (void)cudaEventDestroy(event);
  cuda::check(error, name);
}

}  // namespace

bool is_array(const py::handle& object) { return py::hasattr(object, "__cuda_array_interface__"); }

Array::Array(const py::handle& object, const char* name, Access access, const char* dtype)
    : name_(name) {
  if (!is_array(object)) {
    throw py::type_error(std::string(name) + ": expected an array of " + dtype +
                         " on the CUDA device, such as CuPy's. Received: " +
                         text(py::type::of(object).attr("__name__")) +
                         ". Move it there with cupy.asarray.");
  }
  const py::dict interface = object.attr("__cuda_array_interface__");
  const Dtype& expected = dtype_of(dtype);
  const std::string typestr = text(interface["typestr"]);
  if (typestr != expected.typestr) {
    throw py::type_error(std::string(name) + ": expected dtype " + dtype + " (" + expected.typestr +
                         "). Received: " + typestr + ". Convert it with .astype('" + dtype + "').");
  }
  for (const auto& size : interface["shape"]) shape_.push_back(py::cast<int64_t>(size));
  const py::object strides =
      interface.contains("strides") ? py::object(interface["strides"]) : py::object(py::none());
  if (!strides.is_none()) {
    const auto given = py::cast<std::vector<int64_t>>(strides);
    bool contiguous = given.size() == shape_.size();
    int64_t step = expected.bytes;
    for (size_t i = shape_.size(); contiguous && i-- > 0;) {
      contiguous = shape_[i] <= 1 || given[i] == step;
      step *= shape_[i];
    }
    if (!contiguous && size() != 0) {
      throw py::value_error(std::string(name) +
                            ": expected a C-contiguous array. Received one of "
                            "shape " +
                            to_text(shape_) + " and strides " + text(strides) +
                            ". Copy it with cupy.ascontiguousarray.");
    }
  }
  const py::tuple data = interface["data"];
  if (access == Access::write && py::cast<bool>(data[1])) {
    throw py::value_error(std::string(name) +
                          ": expected a writeable array to put the result in. "
                          "Received a read-only one.");
  }
  const auto address = py::cast<uintptr_t>(data[0]);
  data_ = reinterpret_cast<void*>(address);
  bytes_ = static_cast<uintptr_t>(size() * expected.bytes);
  if (bytes_ == 0) return;
  if (address % static_cast<uintptr_t>(expected.bytes) != 0) {
    throw py::value_error(std::string(name) +
                          ": expected an aligned array. Received one whose address is not a "
                          "multiple of its item size. Copy it with .copy().");
  }
  cudaPointerAttributes attributes{};
  int current = 0;
  cuda::check(cudaPointerGetAttributes(&attributes, data_), name);
  cuda::check(cudaGetDevice(&current), name);
  const bool on_device =
      attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  if (!on_device || attributes.device != current) {
    throw py::value_error(
        std::string(name) + ": expected an array on the current device, " +
        std::to_string(current) + ". Received one " +
        (on_device ? "on device " + std::to_string(attributes.device) : "in host memory") +
        ". Use cupy.cuda.Device to change the device, or copy the array.");
  }
  if (interface.contains("stream")) wait_for(interface["stream"], name);
}

}  // namespace pyconv::bindings
