// What nvcc's host code calls: registration of kernels and
// device variables at start-up, and launches.
#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>

#include "emulation.hpp"

namespace ptxcpu::cudart {

namespace {

struct FatBinary;

struct KernelRecord {
  std::string name;
  FatBinary* binary;
  const Kernel* kernel = nullptr;  // found at the first launch
  u32 dynamic_shared_limit = 0;    // raised by cudaFuncSetAttribute; 0: the default of the device
};

struct VariableRecord {
  std::string name;
  FatBinary* binary;
};

/// One nvcc object. Its kernels run as the translated PTX file that was made from the same source.
struct FatBinary {
  std::vector<KernelRecord*> kernels;
  std::vector<VariableRecord*> variables;
  const Module* module = nullptr;  // found at the first launch
};

struct CallConfiguration {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  cudaStream_t stream;
};

std::mutex registry_mutex;
std::mutex launch_mutex;  // one kernel at a time, in the order of the calls

// Registration runs in static constructors, before those of this file may have run.
struct Registry {
  std::deque<FatBinary> binaries;
  std::deque<KernelRecord> kernels;
  std::deque<VariableRecord> variables;
  std::map<const void*, KernelRecord*> kernel_of_stub;
  std::map<const void*, VariableRecord*> variable_of_host_address;
  std::set<const Module*> bound_modules;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

thread_local std::vector<CallConfiguration> call_stack;

const Kernel* kernel_named(const Module& module, const std::string& name) {
  for (u32 i = 0; i < module.kernel_count; ++i) {
    if (module.kernels[i].name == name) return &module.kernels[i];
  }
  return nullptr;
}

const Variable* variable_named(const Module& module, const std::string& name) {
  for (u32 i = 0; i < module.variable_count; ++i) {
    if (module.variables[i].name == name) return &module.variables[i];
  }
  return nullptr;
}

bool has_everything(const Module& module, const FatBinary& binary) {
  const auto has_kernel = [&](const KernelRecord* record) {
    return kernel_named(module, record->name);
  };
  const auto has_variable = [&](const VariableRecord* v) {
    return variable_named(module, v->name);
  };
  return std::all_of(binary.kernels.begin(), binary.kernels.end(), has_kernel) &&
         std::all_of(binary.variables.begin(), binary.variables.end(), has_variable);
}

/// Two source files may instantiate the same template, so a kernel name
/// alone does not tell which file it came from: the translated file must
/// have all names of the nvcc object, and belongs to one object only.
const Module* module_of(FatBinary& binary) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  if (binary.module) return binary.module;
  const Module* fallback = nullptr;
  for (const Module* module : registered_modules()) {
    if (!has_everything(*module, binary)) continue;
    fallback = module;
    if (registry().bound_modules.insert(module).second) return binary.module = module;
  }
  return binary.module = fallback;
}

/// A kernel is named by its host stub, or by the handle that __cudaGetKernel gave out.
KernelRecord* find_kernel(const void* function) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  const auto found = registry().kernel_of_stub.find(function);
  if (found != registry().kernel_of_stub.end()) return found->second;
  for (KernelRecord& record : registry().kernels) {
    if (&record == function) return &record;
  }
  return nullptr;
}

std::string text_of(const dim3& extent) {
  return "(" + std::to_string(extent.x) + "," + std::to_string(extent.y) + "," +
         std::to_string(extent.z) + ")";
}

bool exceeds(const dim3& extent, const u32 limit[3]) {
  const bool empty = extent.x == 0 || extent.y == 0 || extent.z == 0;
  return empty || extent.x > limit[0] || extent.y > limit[1] || extent.z > limit[2];
}

cudaError_t check_limits(const KernelRecord& record, const Kernel& kernel,
                         const CallConfiguration& call) {
  const DeviceLimits limits = device_limits();
  const auto refuse = [&](cudaError_t error, const std::string& reason) {
    return finish(error, readable_name(record.name) + ": " + reason);
  };
  if (exceeds(call.grid, limits.grid)) {
    return refuse(cudaErrorInvalidConfiguration, "invalid grid " + text_of(call.grid));
  }
  const u64 threads = u64(call.block.x) * call.block.y * call.block.z;
  if (exceeds(call.block, limits.block) || threads > limits.threads_per_block) {
    return refuse(cudaErrorInvalidConfiguration, "invalid block " + text_of(call.block));
  }
  if (threads > kernel.max_threads) {
    return refuse(cudaErrorInvalidValue,
                  std::to_string(threads) +
                      " threads per block, but the kernel's launch bound is " +
                      std::to_string(kernel.max_threads));
  }
  const u64 shared = u64(kernel.static_shared_bytes) + call.shared_bytes;
  const bool fits_by_default = shared <= limits.shared_bytes_per_block;
  const bool fits_as_requested = call.shared_bytes <= record.dynamic_shared_limit &&
                                 shared <= limits.shared_bytes_per_block_opt_in;
  if (fits_by_default || fits_as_requested) return cudaSuccess;
  return refuse(cudaErrorInvalidValue,
                std::to_string(call.shared_bytes) + " bytes of dynamic and " +
                    std::to_string(kernel.static_shared_bytes) +
                    " of static shared memory; cudaFuncSetAttribute allowed " +
                    std::to_string(record.dynamic_shared_limit) + ", the device " +
                    std::to_string(limits.shared_bytes_per_block) + " without and " +
                    std::to_string(limits.shared_bytes_per_block_opt_in) + " with it");
}

std::vector<u8> pack_parameters(const Kernel& kernel, void** arguments) {
  std::vector<u8> packed(kernel.parameter_bytes + sizeof(u64));
  for (u32 i = 0; i < kernel.parameter_count; ++i) {
    const Parameter& parameter = kernel.parameters[i];
    memcpy(&packed[parameter.offset], arguments[i], parameter.bytes);
  }
  return packed;
}

LaunchResult run(const KernelRecord& record, const CallConfiguration& call,
                 const std::vector<u8>& parameters) {
  const Settings settings = read_settings();
  LaunchRequest request{};
  request.module = record.binary->module;
  request.kernel = record.kernel;
  const u32 grid[3] = {call.grid.x, call.grid.y, call.grid.z};
  const u32 block[3] = {call.block.x, call.block.y, call.block.z};
  std::copy_n(grid, 3, request.grid);
  std::copy_n(block, 3, request.block);
  request.dynamic_shared_bytes = static_cast<u32>(call.shared_bytes);
  request.parameters = parameters.data();
  request.buffers = registered_buffers();
  request.options = settings.launch;
  request.options.allow_unregistered =
      !settings.strict && has_unregistered_pointer(parameters, request.buffers);
  std::lock_guard<std::mutex> lock(launch_mutex);
  return run_launch(request);
}

/// Runs a kernel to its end, now or at the launch of a graph, so that a fault is reported at once,
/// as with CUDA_LAUNCH_BLOCKING=1.
cudaError_t run_and_report(const KernelRecord& record, const CallConfiguration& call,
                           const std::vector<u8>& parameters) {
  if (sticky_error() != cudaSuccess) return sticky_error();
  try {
    const LaunchResult result = run(record, call, parameters);
    if (result.fault == Fault::kNone) return finish(cudaSuccess);
    return make_sticky(error_of_fault(result.fault), result.message);
  } catch (const std::invalid_argument& mistake) {  // in an environment variable
    return finish(cudaErrorInvalidValue, mistake.what());
  }
}

/// Null if no translated file has the kernel.
const Kernel* translated_kernel(KernelRecord& record) {
  const Module* module = module_of(*record.binary);
  std::lock_guard<std::mutex> lock(registry_mutex);
  if (module && !record.kernel) record.kernel = kernel_named(*module, record.name);
  return record.kernel;
}

const Kernel* translated_kernel(const void* function) {
  KernelRecord* record = find_kernel(function);
  return record ? translated_kernel(*record) : nullptr;
}

cudaError_t launch(const void* function, const CallConfiguration& call, void** arguments) {
  if (sticky_error() != cudaSuccess) return sticky_error();
  KernelRecord* record = find_kernel(function);
  if (!record) {
    return finish(cudaErrorInvalidDeviceFunction, "launch of a function that is not a kernel");
  }
  const Kernel* kernel = translated_kernel(*record);
  if (!kernel) {
    return finish(cudaErrorInvalidDeviceFunction,
                  readable_name(record->name) + ": no translated PTX has this kernel");
  }
  const cudaError_t error = check_limits(*record, *kernel, call);
  if (error != cudaSuccess) return error;
  // The parameters are copied now: they may be gone when a graph is launched.
  return submit(call.stream, [record, call, parameters = pack_parameters(*kernel, arguments)] {
    return run_and_report(*record, call, parameters);
  });
}

cudaError_t set_dynamic_shared_limit(const void* function, int bytes) {
  KernelRecord* record = find_kernel(function);
  const Kernel* kernel = translated_kernel(function);
  if (!kernel) return finish(cudaErrorInvalidDeviceFunction);
  const u32 available = device_limits().shared_bytes_per_block_opt_in;
  if (bytes < 0 || kernel->static_shared_bytes + static_cast<u64>(bytes) > available) {
    return finish(cudaErrorInvalidValue, readable_name(record->name) + ": cannot have " +
                                             std::to_string(bytes) +
                                             " bytes of dynamic shared memory, the device has " +
                                             std::to_string(available) + " per block");
  }
  record->dynamic_shared_limit = static_cast<u32>(bytes);
  return finish(cudaSuccess);
}

u32 blocks_per_multiprocessor(const Kernel& kernel, int block_size, size_t dynamic_shared) {
  constexpr u32 reserved_shared_bytes = 1024;  // per block, by the system
  const DeviceLimits limits = device_limits();
  if (block_size <= 0 ||
      static_cast<u32>(block_size) > std::min(kernel.max_threads, limits.threads_per_block)) {
    return 0;
  }
  const u64 shared = kernel.static_shared_bytes + dynamic_shared;
  if (shared > limits.shared_bytes_per_block_opt_in) return 0;
  const u32 threads = (block_size + 31) / 32 * 32;
  const u64 by_shared = limits.shared_bytes_per_multiprocessor / (shared + reserved_shared_bytes);
  const u64 by_threads = limits.threads_per_multiprocessor / threads;
  return static_cast<u32>(std::min({by_shared, by_threads, u64(limits.blocks_per_multiprocessor)}));
}

bool asks_for_cluster(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id != cudaLaunchAttributeClusterDimension) continue;
    const auto& cluster = attribute.val.clusterDim;
    if (cluster.x * cluster.y * cluster.z > 1) return true;
  }
  return false;
}

}  // namespace

const Variable* find_variable(const void* host_address) {
  VariableRecord* record = nullptr;
  {
    std::lock_guard<std::mutex> lock(registry_mutex);
    const auto found = registry().variable_of_host_address.find(host_address);
    if (found == registry().variable_of_host_address.end()) return nullptr;
    record = found->second;
  }
  const Module* module = module_of(*record->binary);
  return module ? variable_named(*module, record->name) : nullptr;
}

}  // namespace ptxcpu::cudart

using namespace ptxcpu;
using namespace ptxcpu::cudart;

extern "C" {

// ---- Called by the code that nvcc generates (prototypes: crt/host_runtime.h,
// crt/device_functions.h) ----

void** __cudaRegisterFatBinary(void*) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  return reinterpret_cast<void**>(&registry().binaries.emplace_back());
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void** handle, const char* stub, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  FatBinary* binary = reinterpret_cast<FatBinary*>(handle);
  KernelRecord& record = registry().kernels.emplace_back(KernelRecord{name, binary});
  binary->kernels.push_back(&record);
  registry().kernel_of_stub[stub] = &record;
}

void __cudaRegisterVar(void** handle, char* host_address, char*, const char* name, int, size_t, int,
                       int) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  FatBinary* binary = reinterpret_cast<FatBinary*>(handle);
  VariableRecord& record = registry().variables.emplace_back(VariableRecord{name, binary});
  binary->variables.push_back(&record);
  registry().variable_of_host_address[host_address] = &record;
}

char __cudaInitModule(void**) { return 1; }

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
                                     cudaStream_t stream) {
  call_stack.push_back({grid, block, shared_bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                       void* stream) {
  if (call_stack.empty()) return finish(cudaErrorInvalidConfiguration);
  const CallConfiguration call = call_stack.back();
  call_stack.pop_back();
  *grid = call.grid;
  *block = call.block;
  *shared_bytes = call.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = call.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* handle, const void* stub) {
  *handle = reinterpret_cast<cudaKernel_t>(find_kernel(stub));
  return finish(*handle ? cudaSuccess : cudaErrorInvalidDeviceFunction);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared_bytes, cudaStream_t stream) {
  return launch(kernel, {grid, block, shared_bytes, stream}, arguments);
}

cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                                    size_t shared_bytes, cudaStream_t stream) {
  const cudaStream_t per_thread = stream ? stream : cudaStreamPerThread;
  return launch(kernel, {grid, block, shared_bytes, per_thread}, arguments);
}

// ---- Called by launchers ----

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t stream) {
  return launch(function, {grid, block, shared_bytes, stream}, arguments);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function,
                                void** arguments) {
  if (asks_for_cluster(*config)) return finish(cudaErrorNotSupported, "thread block clusters");
  const CallConfiguration call{config->gridDim, config->blockDim, config->dynamicSmemBytes,
                               config->stream};
  return launch(function, call, arguments);
}

cudaError_t cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  return finish(cudaErrorNotSupported, "cooperative launch: blocks run one after another here");
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    return set_dynamic_shared_limit(function, value);
  }
  return finish(translated_kernel(function) ? cudaSuccess : cudaErrorInvalidDeviceFunction);
}

cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return finish(cudaSuccess); }

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  constexpr int typical_registers = 32;  // not known without assembling the kernel
  const Kernel* kernel = translated_kernel(function);
  if (!kernel) return finish(cudaErrorInvalidDeviceFunction);
  const DeviceLimits limits = device_limits();
  const u32 raised = find_kernel(function)->dynamic_shared_limit;
  const u32 by_default = limits.shared_bytes_per_block - kernel->static_shared_bytes;
  *attributes = {};
  attributes->sharedSizeBytes = kernel->static_shared_bytes;
  attributes->maxThreadsPerBlock =
      static_cast<int>(std::min(kernel->max_threads, limits.threads_per_block));
  attributes->numRegs = typical_registers;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(std::max(raised, by_default));
  attributes->ptxVersion = limits.compute_capability;
  attributes->binaryVersion = limits.compute_capability;
  return finish(cudaSuccess);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void* function, int block_size, size_t dynamic_shared, unsigned) {
  const Kernel* kernel = translated_kernel(function);
  if (!kernel) return finish(cudaErrorInvalidDeviceFunction);
  *blocks = static_cast<int>(blocks_per_multiprocessor(*kernel, block_size, dynamic_shared));
  return finish(cudaSuccess);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function,
                                                          int block_size, size_t dynamic_shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, block_size,
                                                                dynamic_shared, 0);
}

}  // extern "C"
