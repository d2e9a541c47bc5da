// The C interface that ptxcpu/module.py calls through ctypes:
// one translated file, launched by kernel name.
#include <algorithm>
#include <cstdio>

#include "launch.hpp"

namespace ptxcpu {

struct DirectLaunch {  // mirrored in ptxcpu/module.py
  const char* kernel;
  u32 grid[3];
  u32 block[3];
  u32 dynamic_shared_bytes;
  u32 order;
  u64 seed;
  u32 stress;
  u32 detect_races;
  u32 workers;
  u32 buffer_count;
  const u8* parameters;
  const Range* buffers;
  u64 instructions;    // result
  char message[1024];  // result
};

}  // namespace ptxcpu

using namespace ptxcpu;

/// Returns 0, or 1 with the reason in `message`.
extern "C" PTXCPU_EXPORT int ptxcpu_direct_launch(DirectLaunch* launch) {
  const std::string name = launch->kernel;
  LaunchRequest request{};
  request.module = registered_modules().front();
  for (u32 i = 0; i < request.module->kernel_count; ++i) {
    if (request.module->kernels[i].name == name) request.kernel = &request.module->kernels[i];
  }
  if (!request.kernel) {
    snprintf(launch->message, sizeof launch->message, "no kernel named %s", launch->kernel);
    return 1;
  }
  std::copy_n(launch->grid, 3, request.grid);
  std::copy_n(launch->block, 3, request.block);
  request.dynamic_shared_bytes = launch->dynamic_shared_bytes;
  request.parameters = launch->parameters;
  request.buffers.assign(launch->buffers, launch->buffers + launch->buffer_count);
  request.options.order = static_cast<Order>(launch->order);
  request.options.seed = launch->seed;
  request.options.stress = launch->stress;
  request.options.detect_races = launch->detect_races != 0;
  request.options.workers = launch->workers;
  const LaunchResult result = run_launch(request);
  launch->instructions = result.instructions;
  snprintf(launch->message, sizeof launch->message, "%s", result.message.c_str());
  return result.fault != Fault::kNone;
}

extern "C" PTXCPU_EXPORT void* ptxcpu_variable(const char* name) {
  const Module& module = *registered_modules().front();
  for (u32 i = 0; i < module.variable_count; ++i) {
    if (std::string(name) == module.variables[i].name) return module.variables[i].address;
  }
  return nullptr;
}
