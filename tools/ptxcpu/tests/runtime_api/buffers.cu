// Registered buffers: nested, overlapping, and one address with several sizes.
#include <chrono>
#include <cstdlib>

#include "check.hpp"

namespace {

__global__ void read_one(const float* base, int index, float* out) { *out = base[index]; }

/// Whether a kernel may read base[index], when only registered memory may be touched.
bool can_read(const float* base, int index) {
  setenv("PTXCPU_STRICT", "1", 1);
  float out = 0;
  ptxcpu_register_buffer(&out, sizeof out);
  read_one<<<1, 1>>>(base, index, &out);
  const cudaError_t error = cudaGetLastError();
  ptxcpu_unregister_buffer(&out);
  ptxcpu_reset_error();
  EXPECT(error == cudaSuccess || error == cudaErrorIllegalAddress);
  return error == cudaSuccess;
}

float memory[2048];

CHECK(buffer_with_two_sizes) {
  for (const bool big_first : {true, false}) {
    ptxcpu_register_buffer(memory, big_first ? 4096 : 64);
    ptxcpu_register_buffer(memory, big_first ? 64 : 4096);
    EXPECT(can_read(memory, 1023) && !can_read(memory, 1024));
    ptxcpu_unregister_buffer(memory);  // whichever is meant, the other one stays valid
    EXPECT(can_read(memory, 15) && can_read(memory, 1023));
    ptxcpu_unregister_buffer(memory);
    EXPECT(!can_read(memory, 0));
    ptxcpu_unregister_buffer(memory);  // once too often
  }
  for (int i = 0; i < 3; ++i) ptxcpu_register_buffer(memory, 64);
  for (int i = 0; i < 3; ++i) {
    EXPECT(can_read(memory, 15) && !can_read(memory, 16));
    ptxcpu_unregister_buffer(memory);
  }
  EXPECT(!can_read(memory, 0));
}

CHECK(buffer_inside_another) {
  ptxcpu_register_buffer(memory, 4096);
  ptxcpu_register_buffer(memory + 100, 64);
  EXPECT(can_read(memory, 99) && can_read(memory, 100) && can_read(memory, 200));
  float copy[100];
  // Starts in the small buffer and goes beyond it, but stays in the big one.
  EXPECT(cudaMemcpy(copy, memory + 110, sizeof copy, cudaMemcpyDefault) == cudaSuccess);
  ptxcpu_unregister_buffer(memory + 100);
  EXPECT(can_read(memory, 100) && can_read(memory, 1023));
  ptxcpu_register_buffer(memory + 100, 64);
  ptxcpu_unregister_buffer(memory);
  EXPECT(can_read(memory, 100) && can_read(memory, 115));
  EXPECT(!can_read(memory, 99) && !can_read(memory, 116));
  EXPECT(cudaMemcpy(copy, memory + 110, sizeof copy, cudaMemcpyDefault) == cudaErrorInvalidValue);
  ptxcpu_unregister_buffer(memory + 100);
  EXPECT(!can_read(memory, 100));
}

CHECK(buffers_that_overlap) {
  ptxcpu_register_buffer(memory, 4096);
  ptxcpu_register_buffer(memory + 512, 4096);
  EXPECT(can_read(memory, 0) && can_read(memory, 1024) && can_read(memory, 1535));
  ptxcpu_unregister_buffer(memory);
  EXPECT(!can_read(memory, 511) && can_read(memory, 512) && can_read(memory, 1535));
  ptxcpu_unregister_buffer(memory + 512);
  EXPECT(!can_read(memory, 512));
}

CHECK(empty_and_null_buffers) {
  ptxcpu_register_buffer(nullptr, 0);
  ptxcpu_register_buffer(nullptr, 64);
  ptxcpu_unregister_buffer(nullptr);
  ptxcpu_unregister_buffer(memory);
  ptxcpu_register_buffer(memory, 0);
  EXPECT(!can_read(memory, 0));
  ptxcpu_register_buffer(memory, 64);
  EXPECT(can_read(memory, 15) && !can_read(memory, 16));
  ptxcpu_unregister_buffer(memory);
  EXPECT(can_read(memory, 15));
  ptxcpu_unregister_buffer(memory);
  EXPECT(!can_read(memory, 0));
}

CHECK(registered_device_memory) {
  float* device = nullptr;
  EXPECT(cudaMalloc(&device, 64) == cudaSuccess);
  ptxcpu_register_buffer(device, 32);
  EXPECT(can_read(device, 15) && !can_read(device, 16));
  ptxcpu_unregister_buffer(device);
  ptxcpu_unregister_buffer(device);
  EXPECT(can_read(device, 15));
  EXPECT(cudaFree(device) == cudaSuccess);
  EXPECT(cudaFree(device) == cudaErrorInvalidValue);
}

CHECK(many_registrations) {
  constexpr int kBuffers = 1000;
  constexpr int kRounds = 100;
  const auto start = std::chrono::steady_clock::now();
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < kBuffers; ++i) ptxcpu_register_buffer(memory + i, 4096);
    for (int i = 0; i < kBuffers; ++i) ptxcpu_unregister_buffer(memory + i);
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT(seconds.count() < 2);  // 200,000 calls: 10 microseconds each would be far too slow
  EXPECT(!can_read(memory, 0));
}

}  // namespace
