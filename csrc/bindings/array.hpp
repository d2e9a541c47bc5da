// Arrays as the bindings take them from Python: of the backend's own kind (array_numpy.cpp,
// array_cuda.cpp), float32 unless said otherwise, C-contiguous, aligned, in native byte order.
// Anything else is refused with an exception; nothing is ever converted or copied.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../ops.hpp"

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

  // Throws TypeError or ValueError unless the object is such an array.
  Array(const py::handle& object, const char* name, Access access, const char* dtype = "float32");

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
  std::shared_ptr<void> registration_;  // with the emulated device, which checks every access
};

// Whether an object is an array of the backend's kind.
bool is_array(const py::handle& object);

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

// A number, or an array of one that lies where the kernels run.
template <class T>
class ScalarArgument {
 public:
  ScalarArgument(const py::handle& object, const char* name, const char* dtype) {
    if (!is_array(object)) {
      try {
        scalar_.value = py::cast<T>(object);
      } catch (const py::cast_error&) {
        throw py::type_error(std::string(name) + ": expected a number in the range of " + dtype +
                             ". Received: " + std::string(py::repr(object)) + ".");
      }
      return;
    }
    array_ = Array(object, name, Array::Access::read, dtype);
    array_.require({}, "one number");
    scalar_.pointer = static_cast<const T*>(array_.data());
  }
  operator const Scalar<T>&() const { return scalar_; }

 private:
  Array array_;
  Scalar<T> scalar_{};
};

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
