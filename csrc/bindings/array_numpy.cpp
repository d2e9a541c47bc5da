// NumPy's arrays, for the CPU and for the emulated device.
#include <pybind11/numpy.h>

#include <cstdlib>
#include <cstring>

#include "array.hpp"

#ifdef PYCONV_EMULATED_DEVICE
extern "C" {
void ptxcpu_register_buffer(const void* pointer, size_t bytes);
void ptxcpu_unregister_buffer(const void* pointer);
}
#endif

namespace pyconv::bindings {

namespace {

// Whether the numbers are of a type such as "float32", in this machine's byte order. By its letter
// and size: to make NumPy's object for a name takes longer than a small kernel runs.
bool has_dtype(const py::array& array, const char* name) {
  const py::dtype found = array.dtype();
  const int64_t bits = std::atoi(std::strpbrk(name, "0123456789"));
  const bool native = found.byteorder() == '=' || found.byteorder() == '|';
  return native && found.kind() == *name && 8 * found.itemsize() == bits;
}

}  // namespace

bool is_array(const py::handle& object) { return py::isinstance<py::array>(object); }

Array::Array(const py::handle& object, const char* name, Access access, const char* dtype)
    : name_(name) {
  if (!is_array(object)) {
    throw py::type_error(
        std::string(name) + ": expected a NumPy array of " + dtype +
        ". Received: " + std::string(py::str(py::type::of(object).attr("__name__"))) + ".");
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!has_dtype(array, dtype)) {
    throw py::type_error(std::string(name) + ": expected dtype " + dtype +
                         ". Received: " + std::string(py::str(array.dtype())) +
                         ". Convert it with .astype('" + dtype + "').");
  }
  const int flags = array.flags();
  if (!(flags & py::array::c_style)) {
    throw py::value_error(
        std::string(name) + ": expected a C-contiguous array. Received one of shape " +
        std::string(py::str(array.attr("shape"))) + " and strides " +
        std::string(py::str(array.attr("strides"))) + ". Copy it with numpy.ascontiguousarray.");
  }
  if (!(flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) {
    throw py::value_error(std::string(name) +
                          ": expected an aligned array. Received one whose address is not a "
                          "multiple of its item size. Copy it with .copy().");
  }
  if (access == Access::write && !array.writeable()) {
    throw py::value_error(std::string(name) +
                          ": expected a writeable array to put the result in. "
                          "Received a read-only one.");
  }
  shape_.assign(array.shape(), array.shape() + array.ndim());
  data_ = const_cast<void*>(array.data());
  bytes_ = static_cast<uintptr_t>(array.nbytes());
#ifdef PYCONV_EMULATED_DEVICE
  ptxcpu_register_buffer(data_, bytes_);
  registration_ = std::shared_ptr<void>(data_, [](void* data) { ptxcpu_unregister_buffer(data); });
#endif
}

}  // namespace pyconv::bindings
