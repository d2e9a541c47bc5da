// Device-side printf (vprintf in PTX).
#pragma once
#include "types.hpp"

namespace ptxcpu {

/// Prints `format` with the packed argument buffer that nvcc
/// builds; returns the number of arguments.
u32 device_printf(const char* format, const u8* arguments);

}  // namespace ptxcpu
