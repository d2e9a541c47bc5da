// State of the emulated CUDA runtime, shared by the files of this folder.
#pragma once
#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../runtime/launch.hpp"

namespace ptxcpu::cudart {

// ---- Errors (errors.cpp) ----

/// Ends an API call: returns the sticky error if there is one,
/// and otherwise remembers and returns `error`.
cudaError_t finish(cudaError_t error);

/// As `finish`, with a text for ptxcpu_last_error_message().
cudaError_t finish(cudaError_t error, const std::string& message);

/// A fault inside a kernel: every later call returns it, until cudaDeviceReset().
cudaError_t make_sticky(cudaError_t error, const std::string& message);

cudaError_t sticky_error();

cudaError_t error_of_fault(Fault fault);

// ---- Registered memory (memory.cpp) ----

std::vector<Range> registered_buffers();

/// True if one of the 8-byte words of a parameter block points
/// to mapped memory that nobody registered.
bool has_unregistered_pointer(const std::vector<u8>& parameters, const std::vector<Range>& buffers);

// ---- Kernels and device variables (kernels.cpp) ----

const Variable* find_variable(const void* host_address);

// ---- Streams and their capture (streams.cpp) ----

/// What a call on a stream does: at once, or whenever the graph is launched that recorded it.
using Operation = std::function<cudaError_t()>;

/// The operations that a capture recorded, in the order of the calls.
struct Recording {
  std::vector<Operation> operations;
  std::vector<std::shared_ptr<void>> memory;  // of cudaMallocAsync; lives as long as the recording
};

/// Runs the operation, or records it if the stream is capturing. Every call that gives work to a
/// stream goes through here.
cudaError_t submit(cudaStream_t stream, Operation operation);

/// The recording that work on the stream goes to, or null.
std::shared_ptr<Recording> recording_of(cudaStream_t stream);

/// A call that may wait for the device (cudaMalloc, cudaMemcpy and so on) is forbidden during a
/// capture, unless the capture is a relaxed one. Invalidates the captures that forbid it.
cudaError_t check_unsafe_call(const char* function);

/// Ends all captures; their recordings are lost.
void abandon_captures();

// ---- Graphs (graphs.cpp) ----

/// The graph that cudaStreamEndCapture hands out.
cudaGraph_t make_graph(std::shared_ptr<Recording> recording);

// ---- The emulated device (device.cpp) ----

struct DeviceLimits {
  int compute_capability;  // 80 for 8.0
  int multiprocessors;
  u32 shared_bytes_per_block;         // without cudaFuncSetAttribute
  u32 shared_bytes_per_block_opt_in;  // with it
  u32 shared_bytes_per_multiprocessor;
  u32 threads_per_block;
  u32 threads_per_multiprocessor;
  u32 blocks_per_multiprocessor;
  u32 block[3];
  u32 grid[3];
};

DeviceLimits device_limits();

// ---- Settings (settings.cpp), read from the environment at every launch ----

struct Settings {
  LaunchOptions launch;
  bool strict = false;
};

/// Throws std::invalid_argument if a variable has a value that makes no sense.
Settings read_settings();

/// The value of an integer variable, or `fallback` if it is not set.
long integer_setting(const char* name, long fallback, long lowest, long highest);

}  // namespace ptxcpu::cudart
