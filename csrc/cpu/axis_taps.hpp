// Which kernel taps reach which source elements, along one axis of a convolution.
//
// Near a border a tap falls into the padding and contributes nothing; between the strides of a
// data gradient most taps hit no output at all. Instead of padding the source with zeros and
// multiplying by them, output positions are sorted into classes that see the same taps, so that a
// kernel runs the same loop for a whole class and every multiplication counts.
//
// Those of the last few geometries are remembered: for a small layer, finding them takes as long as
// the convolution itself.
//
// Compiled once, with baseline flags, and nothing here is inline: neither it nor the vectors inside
// may be instantiated in an object that is built for a larger instruction set.
#pragma once

#include <cstdint>

namespace pyconv::cpu {

struct AxisTap {
  int64_t k;       // index of the tap in the kernel
  int64_t offset;  // source index, relative to the position's origin
};

struct AxisPosition {
  int64_t out;     // index in the result
  int64_t origin;  // source index of the class's first tap (0 when there is none)
};

struct AxisClass {
  const AxisTap* taps;            // in the order of k, and so of the offsets
  int64_t tap_count;              // 0: no source element reaches these positions
  const AxisPosition* positions;  // in the order of out
  int64_t position_count;
};

struct AxisGeometry {
  int64_t in, out, kernel, stride, pad, dilation;
  bool operator==(const AxisGeometry&) const = default;
};

class AxisTaps {
 public:
  // Result: the outputs; source: the inputs.
  static AxisTaps forward(const AxisGeometry& g);
  // Result: the inputs; source: the outputs. Tap k is tap kernel - 1 - k of the forward pass: a
  // data gradient is a convolution with the flipped kernel.
  static AxisTaps backward_data(const AxisGeometry& g);
  ~AxisTaps();
  AxisTaps(const AxisTaps&) = delete;
  AxisTaps& operator=(const AxisTaps&) = delete;

  const AxisClass* classes;
  int64_t class_count;

 private:
  AxisTaps(const AxisGeometry& g, bool backward);
  struct Storage;
  Storage* storage_;  // shared with those of this thread that have the same geometry
};

}  // namespace pyconv::cpu
