// One emulated device: its limits, attributes and properties.
#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "emulation.hpp"

namespace ptxcpu::cudart {

namespace {

constexpr u32 kKibibyte = 1024;

struct SharedMemorySizes {
  int compute_capability;
  u32 per_block_opt_in;
  u32 per_multiprocessor;
};

constexpr SharedMemorySizes kSharedMemory[] = {
    {75, 64 * kKibibyte, 64 * kKibibyte},   {80, 163 * kKibibyte, 164 * kKibibyte},
    {86, 99 * kKibibyte, 100 * kKibibyte},  {89, 99 * kKibibyte, 100 * kKibibyte},
    {90, 227 * kKibibyte, 228 * kKibibyte},
};

const SharedMemorySizes& shared_memory_of(int compute_capability) {
  const SharedMemorySizes* best = &kSharedMemory[0];
  for (const SharedMemorySizes& sizes : kSharedMemory) {
    if (sizes.compute_capability <= compute_capability) best = &sizes;
  }
  return *best;
}

int attribute_of(cudaDeviceAttr attribute, const DeviceLimits& limits, bool& known) {
  known = true;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return limits.threads_per_block;
    case cudaDevAttrMaxBlockDimX:
      return limits.block[0];
    case cudaDevAttrMaxBlockDimY:
      return limits.block[1];
    case cudaDevAttrMaxBlockDimZ:
      return limits.block[2];
    case cudaDevAttrMaxGridDimX:
      return limits.grid[0];
    case cudaDevAttrMaxGridDimY:
      return limits.grid[1];
    case cudaDevAttrMaxGridDimZ:
      return limits.grid[2];
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return limits.shared_bytes_per_block;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return limits.shared_bytes_per_block_opt_in;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return limits.shared_bytes_per_multiprocessor;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return kKibibyte;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return limits.threads_per_multiprocessor;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return limits.blocks_per_multiprocessor;
    case cudaDevAttrMaxRegistersPerBlock:
      return 65536;
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return 65536;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMultiProcessorCount:
      return limits.multiprocessors;
    case cudaDevAttrComputeCapabilityMajor:
      return limits.compute_capability / 10;
    case cudaDevAttrComputeCapabilityMinor:
      return limits.compute_capability % 10;
    case cudaDevAttrL2CacheSize:
      return 50 * kKibibyte * kKibibyte;
    case cudaDevAttrClockRate:
      return 1'000'000;
    case cudaDevAttrUnifiedAddressing:
      return 1;
    case cudaDevAttrManagedMemory:
      return 1;
    case cudaDevAttrMemoryPoolsSupported:
      return 1;
    case cudaDevAttrCooperativeLaunch:
      return 0;
    default:
      known = false;
      return 0;
  }
}

}  // namespace

DeviceLimits device_limits() {
  int capability = 90;
  int multiprocessors = 132;
  try {
    capability =
        static_cast<int>(integer_setting("PTXCPU_COMPUTE_CAPABILITY", capability, 70, 129));
    multiprocessors =
        static_cast<int>(integer_setting("PTXCPU_MULTIPROCESSORS", multiprocessors, 1, 1024));
  } catch (const std::invalid_argument& mistake) {
    fprintf(stderr, "ptxcpu: %s\n", mistake.what());
  }
  const SharedMemorySizes& shared = shared_memory_of(capability);
  DeviceLimits limits{};
  limits.compute_capability = capability;
  limits.multiprocessors = multiprocessors;
  limits.shared_bytes_per_block = 48 * kKibibyte;
  limits.shared_bytes_per_block_opt_in = shared.per_block_opt_in;
  limits.shared_bytes_per_multiprocessor = shared.per_multiprocessor;
  limits.threads_per_block = 1024;
  limits.threads_per_multiprocessor = capability == 80 || capability == 90 ? 2048 : 1536;
  limits.blocks_per_multiprocessor = capability == 80 || capability == 90 ? 32 : 16;
  const u32 block[3] = {1024, 1024, 64};
  const u32 grid[3] = {2147483647, 65535, 65535};
  std::copy_n(block, 3, limits.block);
  std::copy_n(grid, 3, limits.grid);
  return limits;
}

}  // namespace ptxcpu::cudart

using namespace ptxcpu::cudart;

extern "C" {

// ---- Device ----

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return finish(cudaSuccess);
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return finish(cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  return finish(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return finish(cudaErrorInvalidDevice);
  bool known = false;
  *value = attribute_of(attribute, device_limits(), known);
  return finish(known ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return finish(cudaErrorInvalidDevice);
  const DeviceLimits limits = device_limits();
  *properties = {};
  snprintf(properties->name, sizeof properties->name, "ptxcpu emulated device");
  properties->major = limits.compute_capability / 10;
  properties->minor = limits.compute_capability % 10;
  properties->totalGlobalMem = size_t(16) << 30;
  properties->sharedMemPerBlock = limits.shared_bytes_per_block;
  properties->sharedMemPerBlockOptin = limits.shared_bytes_per_block_opt_in;
  properties->sharedMemPerMultiprocessor = limits.shared_bytes_per_multiprocessor;
  properties->reservedSharedMemPerBlock = kKibibyte;
  properties->regsPerBlock = 65536;
  properties->regsPerMultiprocessor = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = static_cast<int>(limits.threads_per_block);
  properties->maxThreadsPerMultiProcessor = static_cast<int>(limits.threads_per_multiprocessor);
  properties->maxBlocksPerMultiProcessor = static_cast<int>(limits.blocks_per_multiprocessor);
  properties->multiProcessorCount = limits.multiprocessors;
  properties->l2CacheSize = 50 * kKibibyte * kKibibyte;
  properties->unifiedAddressing = 1;
  properties->managedMemory = 1;
  for (int i = 0; i < 3; ++i) {
    properties->maxThreadsDim[i] = static_cast<int>(limits.block[i]);
    properties->maxGridSize[i] = static_cast<int>(limits.grid[i]);
  }
  return finish(cudaSuccess);
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return finish(cudaSuccess);
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return finish(cudaSuccess);
}

cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return finish(cudaSuccess); }

cudaError_t cudaDeviceSetCacheConfig(cudaFuncCache) { return finish(cudaSuccess); }

}  // extern "C"
