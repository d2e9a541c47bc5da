// Arrays as the bindings take them from Python: NumPy, float32, C-contiguous, aligned, in native
// byte order. Anything else is refused with an exception; nothing is ever converted or copied.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

namespace pyconv::bindings {

namespace py = pybind11;

using Shape = std::vector<int64_t>;
constexpr int64_t any = -1;  // in an expected shape: every size is fine

inline std::string to_text(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + (shape[i] == any ? std::string("*") : std::to_string(shape[i]));
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

class Array {
 public:
  enum class Access { read, write };

  Array() = default;  // no array: Python's None

  Array(const py::handle& object, const char* name, Access access, const char* dtype = "float32")
      : name_(name) {
    if (!py::isinstance<py::array>(object)) {
      throw py::type_error(
          std::string(name) + ": expected a NumPy array of " + dtype +
          ". Received: " + std::string(py::str(py::type::of(object).attr("__name__"))) + ".");
    }
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (!array.dtype().equal(py::dtype(dtype))) {
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
  }

  explicit operator bool() const { return name_ != nullptr; }
  int64_t dim(size_t axis) const { return shape_[axis]; }
  const Shape& shape() const { return shape_; }
  const char* name() const { return name_; }
  int64_t size() const {
    int64_t size = 1;
    for (int64_t dim : shape_) size *= dim;
    return size;
  }
  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }

  // Throws unless the shape is `expected`; `meaning` says in words what that is.
  const Array& require(const Shape& expected, const std::string& meaning) const {
    bool fits = shape_.size() == expected.size();
    for (size_t i = 0; fits && i < expected.size(); ++i) {
      fits = expected[i] == any || shape_[i] == expected[i];
    }
    if (!fits) {
      throw py::value_error(std::string(name_) + ": expected shape " + to_text(expected) + ", " +
                            meaning + ". Received: " + to_text(shape_) + ".");
    }
    return *this;
  }

  bool overlaps(const Array& other) const {
    const auto a = reinterpret_cast<uintptr_t>(data_), b = reinterpret_cast<uintptr_t>(other.data_);
    return bytes_ > 0 && other.bytes_ > 0 && a < b + other.bytes_ && b < a + bytes_;
  }
  bool same_memory(const Array& other) const {
    return data_ == other.data_ && bytes_ == other.bytes_;
  }

 private:
  const char* name_ = nullptr;
  void* data_ = nullptr;
  uintptr_t bytes_ = 0;
  Shape shape_;
};

inline Array input(const py::handle& object, const char* name) {
  return Array(object, name, Array::Access::read);
}
inline Array optional_input(const py::handle& object, const char* name) {
  return object.is_none() ? Array() : input(object, name);
}
inline Array output(const py::handle& object, const char* name, const char* dtype = "float32") {
  return Array(object, name, Array::Access::write, dtype);
}
inline Array optional_output(const py::handle& object, const char* name) {
  return object.is_none() ? Array() : output(object, name);
}

// Throws if an output shares memory with an input or with another output.
inline void require_apart(const std::vector<const Array*>& outputs,
                          const std::vector<const Array*>& inputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!*outputs[i]) continue;
    const auto check = [&](const Array& other) {
      if (other && outputs[i]->overlaps(other)) {
        throw py::value_error(std::string(outputs[i]->name()) +
                              ": expected memory of its own. Received "
                              "an array that overlaps with " +
                              other.name() + ".");
      }
    };
    for (const Array* other : inputs) check(*other);
    for (size_t j = 0; j < i; ++j) check(*outputs[j]);
  }
}

// The same for element-wise operations, which may also run in place.
inline void require_apart_or_same(const Array& out, const Array& in) {
  if (!out.same_memory(in)) require_apart({&out}, {&in});
}

}  // namespace pyconv::bindings
