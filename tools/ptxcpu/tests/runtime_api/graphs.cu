// Stream capture and graphs.
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "check.hpp"

namespace {

constexpr auto kGlobal = cudaStreamCaptureModeGlobal;
constexpr auto kThreadLocal = cudaStreamCaptureModeThreadLocal;
constexpr auto kRelaxed = cudaStreamCaptureModeRelaxed;

__constant__ float offset = 0;

__global__ void add(float* values, float summand) { values[threadIdx.x] += summand + offset; }

__global__ void multiply(float* values, float factor) { values[threadIdx.x] *= factor; }

__global__ void copy_first(float* out, const float* in) { *out = *in; }

cudaStream_t new_stream(unsigned flags = cudaStreamDefault) {
  cudaStream_t stream = nullptr;
  EXPECT(cudaStreamCreateWithFlags(&stream, flags) == cudaSuccess);
  return stream;
}

float* new_device_array(size_t count) {
  float* array = nullptr;
  EXPECT(cudaMalloc(&array, count * sizeof(float)) == cudaSuccess);
  memset(array, 0, count * sizeof(float));
  return array;
}

/// Captures what `work` does on the stream.
cudaGraph_t capture(cudaStream_t stream, const std::function<void()>& work) {
  cudaGraph_t graph = nullptr;
  EXPECT(cudaStreamBeginCapture(stream, kGlobal) == cudaSuccess);
  work();
  EXPECT(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  EXPECT(graph != nullptr);
  return graph;
}

cudaGraphExec_t instantiate(cudaGraph_t graph) {
  cudaGraphExec_t executable = nullptr;
  EXPECT(cudaGraphInstantiate(&executable, graph) == cudaSuccess);
  return executable;
}

cudaStreamCaptureStatus status_of(cudaStream_t stream) {
  auto status = cudaStreamCaptureStatusNone;
  EXPECT(cudaStreamIsCapturing(stream, &status) == cudaSuccess);
  return status;
}

size_t node_count(cudaGraph_t graph) {
  size_t count = 0;
  EXPECT(cudaGraphGetNodes(graph, nullptr, &count) == cudaSuccess);
  return count;
}

CHECK(captured_work_runs_at_launch) {
  float* values = new_device_array(4);
  cudaStream_t stream = new_stream();
  const cudaGraph_t graph = capture(stream, [&] {
    EXPECT(status_of(stream) == cudaStreamCaptureStatusActive);
    add<<<1, 4, 0, stream>>>(values, 1);
    EXPECT(cudaGetLastError() == cudaSuccess);
    multiply<<<1, 4, 0, stream>>>(values, 10);
    EXPECT(cudaGetLastError() == cudaSuccess);
    EXPECT(values[0] == 0);
  });
  EXPECT(status_of(stream) == cudaStreamCaptureStatusNone);
  EXPECT(values[0] == 0);
  EXPECT(node_count(graph) == 2);
  const cudaGraphExec_t executable = instantiate(graph);
  EXPECT(values[0] == 0);
  EXPECT(cudaGraphLaunch(executable, stream) == cudaSuccess);
  EXPECT(cudaStreamSynchronize(stream) == cudaSuccess);
  EXPECT(values[0] == 10 && values[3] == 10);  // in the order of the calls
  EXPECT(cudaGraphLaunch(executable, nullptr) == cudaSuccess);
  EXPECT(cudaDeviceSynchronize() == cudaSuccess);
  EXPECT(values[0] == 110);
  EXPECT(cudaGraphExecDestroy(executable) == cudaSuccess);
  EXPECT(cudaGraphDestroy(graph) == cudaSuccess);
  EXPECT(cudaStreamDestroy(stream) == cudaSuccess);
  EXPECT(cudaFree(values) == cudaSuccess);
}

CHECK(captured_parameters_are_copied) {
  float* values = new_device_array(2);
  cudaStream_t stream = new_stream();
  float* pointer = values;
  float summand = 5;
  void* arguments[] = {&pointer, &summand};
  const cudaGraph_t graph = capture(stream, [&] {
    EXPECT(cudaLaunchKernel(add, dim3(1), dim3(1), arguments, 0, stream) == cudaSuccess);
    cudaLaunchConfig_t config = {};
    config.gridDim = 1;
    config.blockDim = 1;
    config.stream = stream;
    EXPECT(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(add), arguments) ==
           cudaSuccess);
  });
  pointer = nullptr;
  summand = NAN;
  EXPECT(cudaGraphLaunch(instantiate(graph), stream) == cudaSuccess);
  EXPECT(values[0] == 10 && values[1] == 0);
}

CHECK(every_kind_of_work_is_captured) {
  float* values = new_device_array(4);
  float* copies = new_device_array(4);
  cudaStream_t stream = new_stream();
  const float one = 1;
  int calls = 0;
  const cudaGraph_t graph = capture(stream, [&] {
    EXPECT(cudaMemcpyToSymbolAsync(offset, &one, sizeof one, 0, cudaMemcpyDefault, stream) ==
           cudaSuccess);
    EXPECT(cudaMemsetAsync(values, 0, 16, stream) == cudaSuccess);
    add<<<1, 4, 0, stream>>>(values, 1);
    EXPECT(cudaMemcpyAsync(copies, values, 8, cudaMemcpyDefault, stream) == cudaSuccess);
    EXPECT(cudaMemcpy2DAsync(copies + 2, 4, values + 2, 4, 4, 2, cudaMemcpyDefault, stream) ==
           cudaSuccess);
    const auto count = [](void* counter) { ++*static_cast<int*>(counter); };
    EXPECT(cudaLaunchHostFunc(stream, count, &calls) == cudaSuccess);
  });
  EXPECT(node_count(graph) == 6 && calls == 0 && copies[0] == 0);
  const cudaGraphExec_t executable = instantiate(graph);
  for (int launch = 1; launch <= 2; ++launch) {
    EXPECT(cudaGraphLaunch(executable, stream) == cudaSuccess);
    EXPECT(calls == launch);
    for (int i = 0; i < 4; ++i) EXPECT(copies[i] == 2);
  }
  const float zero = 0;
  EXPECT(cudaMemcpyToSymbol(offset, &zero, sizeof zero) == cudaSuccess);
}

CHECK(memory_allocated_in_a_capture) {
  float* out = new_device_array(2);
  float* scratch = nullptr;
  cudaStream_t stream = new_stream();
  const cudaGraph_t graph = capture(stream, [&] {
    EXPECT(cudaMallocAsync(&scratch, 16, stream) == cudaSuccess);
    EXPECT(scratch != nullptr);
    copy_first<<<1, 1, 0, stream>>>(out, scratch);  // before it is written
    EXPECT(cudaMemsetAsync(scratch, 0, 16, stream) == cudaSuccess);
    add<<<1, 4, 0, stream>>>(scratch, 3);
    copy_first<<<1, 1, 0, stream>>>(out + 1, scratch);
    EXPECT(cudaFreeAsync(scratch, stream) == cudaSuccess);
  });
  const cudaGraphExec_t executable = instantiate(graph);
  EXPECT(cudaGraphDestroy(graph) == cudaSuccess);  // the executable keeps the memory
  for (int launch = 0; launch < 2; ++launch) {
    EXPECT(cudaGraphLaunch(executable, stream) == cudaSuccess);
    EXPECT(std::isnan(out[0]) && out[1] == 3);
  }
  cudaPointerAttributes attributes;
  EXPECT(cudaPointerGetAttributes(&attributes, scratch) == cudaSuccess);
  EXPECT(attributes.type == cudaMemoryTypeDevice);
  EXPECT(cudaGraphExecDestroy(executable) == cudaSuccess);
  EXPECT(cudaPointerGetAttributes(&attributes, scratch) == cudaSuccess);
  EXPECT(attributes.type == cudaMemoryTypeUnregistered);
  EXPECT(cudaFree(scratch) == cudaErrorInvalidValue);
}

CHECK(memory_freed_after_a_capture) {
  float* kept = nullptr;
  float* outside = new_device_array(4);
  cudaStream_t stream = new_stream();
  const cudaGraph_t graph = capture(stream, [&] {
    EXPECT(cudaMallocAsync(&kept, 16, stream) == cudaSuccess);
    EXPECT(cudaMemsetAsync(kept, 0, 16, stream) == cudaSuccess);
    EXPECT(cudaFreeAsync(outside, stream) == cudaErrorInvalidValue);
    EXPECT(cudaFreeAsync(nullptr, stream) == cudaSuccess);
  });
  const cudaGraphExec_t executable = instantiate(graph);
  for (int launch = 0; launch < 2; ++launch) {
    EXPECT(cudaGraphLaunch(executable, stream) == cudaSuccess);
    EXPECT(kept[0] == 0);
    EXPECT(cudaFreeAsync(kept, stream) == cudaSuccess);
  }
  EXPECT(cudaGraphLaunch(executable, stream) == cudaSuccess);
  EXPECT(cudaFree(kept) == cudaSuccess);
  EXPECT(cudaFree(outside) == cudaSuccess);
  EXPECT(cudaMallocAsync(&outside, 16, stream) == cudaSuccess);  // no capture: ordinary memory
  EXPECT(cudaFreeAsync(outside, stream) == cudaSuccess);
  EXPECT(cudaFreeAsync(outside, stream) == cudaErrorInvalidValue);
}

CHECK(default_streams) {
  EXPECT(cudaStreamBeginCapture(nullptr, kGlobal) == cudaErrorStreamCaptureUnsupported);
  EXPECT(cudaStreamBeginCapture(cudaStreamLegacy, kGlobal) == cudaErrorStreamCaptureUnsupported);
  float* values = new_device_array(1);
  const cudaGraph_t graph =
      capture(cudaStreamPerThread, [&] { add<<<1, 1, 0, cudaStreamPerThread>>>(values, 1); });
  EXPECT(values[0] == 0);
  EXPECT(cudaGraphLaunch(instantiate(graph), cudaStreamPerThread) == cudaSuccess);
  EXPECT(values[0] == 1);
}

/// `call` must fail with `error` during a capture, break the capture, and work after it.
void expect_forbidden(const char* name, cudaStreamCaptureMode mode, cudaError_t error,
                      const std::function<cudaError_t(cudaStream_t)>& call,
                      cudaError_t error_at_end = cudaErrorStreamCaptureInvalidated) {
  cudaStream_t stream = new_stream();
  float* values = new_device_array(1);
  EXPECT(cudaStreamBeginCapture(stream, mode) == cudaSuccess);
  add<<<1, 1, 0, stream>>>(values, 1);
  const cudaError_t result = call(stream);
  if (result != error) printf("%s: %s\n", name, cudaGetErrorName(result));
  EXPECT(result == error);
  const bool broken = error_at_end != cudaSuccess;
  const auto expected_status =
      broken ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  EXPECT(status_of(stream) == expected_status);
  cudaGetLastError();
  if (broken) {
    add<<<1, 1, 0, stream>>>(values, 1);
    EXPECT(cudaGetLastError() == cudaErrorStreamCaptureInvalidated);
    EXPECT(strstr(ptxcpu_last_error_message(), name) != nullptr);
  }
  cudaGraph_t graph = nullptr;
  EXPECT(cudaStreamEndCapture(stream, &graph) == error_at_end);
  EXPECT((graph == nullptr) == broken);
  cudaGetLastError();  // not sticky
  EXPECT(status_of(stream) == cudaStreamCaptureStatusNone);
  add<<<1, 1, 0, stream>>>(values, 1);
  EXPECT(cudaGetLastError() == cudaSuccess);
  EXPECT(values[0] == 1);
  EXPECT(call(stream) == cudaSuccess);
}

cudaError_t allocate_and_free(cudaStream_t) {
  float* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, 64);
  return error == cudaSuccess ? cudaFree(memory) : error;
}

cudaError_t synchronous_copy(cudaStream_t) {
  float from = 1;
  float to = 0;
  return cudaMemcpy(&to, &from, sizeof to, cudaMemcpyDefault);
}

CHECK(waiting_breaks_a_capture) {
  for (const auto mode : {kGlobal, kThreadLocal, kRelaxed}) {
    expect_forbidden("cudaStreamSynchronize", mode, cudaErrorStreamCaptureUnsupported,
                     cudaStreamSynchronize);
    expect_forbidden("cudaStreamQuery", mode, cudaErrorStreamCaptureUnsupported, cudaStreamQuery);
    expect_forbidden("cudaDeviceSynchronize", mode, cudaErrorStreamCaptureUnsupported,
                     [](cudaStream_t) { return cudaDeviceSynchronize(); });
  }
}

CHECK(unsafe_calls_break_a_capture) {
  for (const auto mode : {kGlobal, kThreadLocal}) {
    expect_forbidden("cudaMalloc", mode, cudaErrorStreamCaptureUnsupported, allocate_and_free);
    expect_forbidden("cudaMemcpy", mode, cudaErrorStreamCaptureUnsupported, synchronous_copy);
    float* memory = new_device_array(1);
    expect_forbidden("cudaFree", mode, cudaErrorStreamCaptureUnsupported,
                     [memory](cudaStream_t) { return cudaFree(memory); });
  }
  expect_forbidden("", kRelaxed, cudaSuccess, allocate_and_free, cudaSuccess);
}

CHECK(unsafe_calls_of_other_threads) {
  const auto in_other_thread = [](cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    std::thread([&] { error = allocate_and_free(stream); }).join();
    return error;
  };
  expect_forbidden("cudaMalloc", kGlobal, cudaErrorStreamCaptureUnsupported, in_other_thread);
  expect_forbidden("", kThreadLocal, cudaSuccess, in_other_thread, cudaSuccess);
  const auto in_relaxed_section = [](cudaStream_t stream) {
    auto mode = kRelaxed;
    EXPECT(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
    const cudaError_t error = allocate_and_free(stream);
    EXPECT(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
    EXPECT(mode == kRelaxed);
    return error;
  };
  expect_forbidden("", kGlobal, cudaSuccess, in_relaxed_section, cudaSuccess);
}

CHECK(legacy_stream_breaks_a_capture) {
  float* values = new_device_array(1);
  const auto launch = [values](cudaStream_t) {
    multiply<<<1, 1>>>(values, 1);
    return cudaGetLastError();
  };
  expect_forbidden("legacy", kGlobal, cudaErrorStreamCaptureImplicit, launch);
  expect_forbidden("legacy", kRelaxed, cudaErrorStreamCaptureImplicit, launch);
  expect_forbidden("legacy", kGlobal, cudaErrorStreamCaptureImplicit,
                   [values](cudaStream_t) { return cudaMemsetAsync(values, 0, 4, nullptr); });
  auto status = cudaStreamCaptureStatusNone;
  cudaStream_t independent = new_stream(cudaStreamNonBlocking);
  EXPECT(cudaStreamBeginCapture(independent, kGlobal) == cudaSuccess);
  EXPECT(launch(nullptr) == cudaSuccess);
  EXPECT(cudaStreamIsCapturing(nullptr, &status) == cudaSuccess);
  cudaGraph_t graph = nullptr;
  EXPECT(cudaStreamEndCapture(independent, &graph) == cudaSuccess);
  cudaStream_t stream = new_stream();
  EXPECT(cudaStreamBeginCapture(stream, kGlobal) == cudaSuccess);
  EXPECT(cudaStreamIsCapturing(nullptr, &status) == cudaErrorStreamCaptureImplicit);
  EXPECT(status_of(stream) == cudaStreamCaptureStatusActive);  // only asked
  EXPECT(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
}

CHECK(other_streams_run_during_a_capture) {
  float* values = new_device_array(1);
  cudaStream_t stream = new_stream();
  cudaStream_t other = new_stream();
  capture(stream, [&] {
    add<<<1, 1, 0, other>>>(values, 1);
    EXPECT(cudaStreamSynchronize(other) == cudaSuccess);
    EXPECT(values[0] == 1);
  });
}

CHECK(begin_and_end_must_match) {
  cudaStream_t stream = new_stream();
  cudaGraph_t graph = nullptr;
  EXPECT(cudaStreamEndCapture(stream, &graph) == cudaErrorIllegalState);
  EXPECT(cudaStreamBeginCapture(stream, kGlobal) == cudaSuccess);
  EXPECT(cudaStreamBeginCapture(stream, kGlobal) == cudaErrorIllegalState);
  cudaError_t error = cudaSuccess;
  std::thread([&] { error = cudaStreamEndCapture(stream, &graph); }).join();
  EXPECT(error == cudaErrorStreamCaptureWrongThread);
  EXPECT(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  EXPECT(cudaStreamBeginCapture(stream, kRelaxed) == cudaSuccess);
  std::thread([&] { error = cudaStreamEndCapture(stream, &graph); }).join();
  EXPECT(error == cudaSuccess);
}

CHECK(capture_information) {
  cudaStream_t stream = new_stream();
  auto status = cudaStreamCaptureStatusActive;
  unsigned long long first = 0;
  unsigned long long second = 0;
  EXPECT(cudaStreamGetCaptureInfo(stream, &status, &first) == cudaSuccess);
  EXPECT(status == cudaStreamCaptureStatusNone);
  capture(stream, [&] {
    EXPECT(cudaStreamGetCaptureInfo(stream, &status, &first) == cudaSuccess);
    EXPECT(status == cudaStreamCaptureStatusActive);
  });
  capture(stream, [&] {
    EXPECT(cudaStreamGetCaptureInfo(stream, &status, &second) == cudaSuccess);
    size_t count = 0;
    EXPECT(cudaStreamGetCaptureInfo(stream, &status, nullptr, nullptr, nullptr, nullptr, &count) ==
           cudaErrorNotSupported);
  });
  EXPECT(first != 0 && second != first);
}

CHECK(invalid_launch_in_a_capture) {
  float* values = new_device_array(1);
  cudaStream_t stream = new_stream();
  const cudaGraph_t graph = capture(stream, [&] {
    add<<<1, 1025, 0, stream>>>(values, 1);
    EXPECT(cudaGetLastError() == cudaErrorInvalidConfiguration);
    add<<<1, 1, 50000, stream>>>(values, 1);
    EXPECT(cudaGetLastError() == cudaErrorInvalidValue);
    EXPECT(cudaMemsetAsync(values, 0, 5, stream) == cudaErrorInvalidValue);
  });
  EXPECT(node_count(graph) == 0);
  EXPECT(cudaGraphLaunch(instantiate(graph), stream) == cudaSuccess);
}

CHECK(fault_in_a_graph_is_sticky) {
  float* values = new_device_array(1);
  float* after = new_device_array(1);
  cudaStream_t stream = new_stream();
  const cudaGraph_t graph = capture(stream, [&] {
    add<<<1, 2, 0, stream>>>(values, 1);  // values[1] does not exist
    EXPECT(cudaGetLastError() == cudaSuccess);
    add<<<1, 1, 0, stream>>>(after, 1);
  });
  const cudaGraphExec_t executable = instantiate(graph);
  EXPECT(cudaGraphLaunch(executable, stream) == cudaErrorIllegalAddress);
  EXPECT(strstr(ptxcpu_last_error_message(), "thread (1,0,0)") != nullptr);
  EXPECT(cudaStreamSynchronize(stream) == cudaErrorIllegalAddress);
  EXPECT(cudaGetLastError() == cudaErrorIllegalAddress);
  EXPECT(cudaGetLastError() == cudaErrorIllegalAddress);
  EXPECT(after[0] == 0);  // what comes after the fault does not run
  EXPECT(cudaDeviceReset() == cudaSuccess);
  EXPECT(cudaGraphExecDestroy(executable) == cudaSuccess);
  EXPECT(cudaGraphDestroy(graph) == cudaSuccess);
}

CHECK(buffer_that_shrinks_before_the_launch) {
  float from[16] = {1};
  float* to = new_device_array(16);
  cudaStream_t stream = new_stream();
  ptxcpu_register_buffer(from, sizeof from);
  const cudaGraph_t graph = capture(stream, [&] {
    EXPECT(cudaMemcpyAsync(to, from, sizeof from, cudaMemcpyDefault, stream) == cudaSuccess);
  });
  ptxcpu_unregister_buffer(from);
  ptxcpu_register_buffer(from, 32);
  EXPECT(cudaGraphLaunch(instantiate(graph), stream) == cudaErrorIllegalAddress);
  EXPECT(to[0] == 0);
}

CHECK(handles_of_graphs) {
  float* values = new_device_array(1);
  cudaStream_t stream = new_stream();
  const cudaGraph_t graph = capture(stream, [&] { add<<<1, 1, 0, stream>>>(values, 1); });
  cudaGraphExec_t first = nullptr;
  cudaGraphExec_t second = nullptr;
  EXPECT(cudaGraphInstantiateWithFlags(&first, graph, 0) == cudaSuccess);
  EXPECT(cudaGraphInstantiate(&second, graph, 0) == cudaSuccess);
  EXPECT(first != second);
  EXPECT(cudaGraphUpload(first, stream) == cudaSuccess);
  EXPECT(cudaGraphDestroy(graph) == cudaSuccess);
  EXPECT(cudaGraphDestroy(graph) == cudaErrorInvalidValue);
  EXPECT(cudaGraphInstantiate(&second, graph, 0) == cudaErrorInvalidValue);
  EXPECT(cudaGraphExecDestroy(first) == cudaSuccess);
  EXPECT(cudaGraphLaunch(first, stream) == cudaErrorInvalidValue);
  EXPECT(cudaGraphLaunch(second, stream) == cudaSuccess);
  EXPECT(values[0] == 1);
  EXPECT(cudaGraphExecDestroy(second) == cudaSuccess);
}

CHECK(graph_inside_a_graph) {
  float* values = new_device_array(1);
  cudaStream_t stream = new_stream();
  const cudaGraph_t inner = capture(stream, [&] { add<<<1, 1, 0, stream>>>(values, 1); });
  const cudaGraphExec_t inner_executable = instantiate(inner);
  const cudaGraph_t outer = capture(stream, [&] {
    EXPECT(cudaGraphLaunch(inner_executable, stream) == cudaSuccess);
    multiply<<<1, 1, 0, stream>>>(values, 10);
    EXPECT(cudaGraphLaunch(inner_executable, stream) == cudaSuccess);
  });
  EXPECT(values[0] == 0);
  EXPECT(cudaGraphExecDestroy(inner_executable) == cudaSuccess);
  EXPECT(cudaGraphLaunch(instantiate(outer), stream) == cudaSuccess);
  EXPECT(values[0] == 11);
}

CHECK(events_in_a_capture) {
  cudaStream_t stream = new_stream();
  cudaStream_t other = new_stream();
  cudaEvent_t inside;
  cudaEvent_t outside;
  EXPECT(cudaEventCreate(&inside) == cudaSuccess && cudaEventCreate(&outside) == cudaSuccess);
  EXPECT(cudaEventRecord(outside, stream) == cudaSuccess);
  capture(stream, [&] {
    EXPECT(cudaEventRecord(inside, stream) == cudaSuccess);
    EXPECT(cudaStreamWaitEvent(stream, inside, 0) == cudaSuccess);
  });
  float milliseconds = 0;
  EXPECT(cudaEventElapsedTime(&milliseconds, outside, inside) == cudaErrorCapturedEvent);
  EXPECT(cudaEventSynchronize(inside) == cudaErrorCapturedEvent);
  EXPECT(cudaEventRecord(inside, stream) == cudaSuccess);
  EXPECT(cudaEventElapsedTime(&milliseconds, outside, inside) == cudaSuccess);
  cudaGetLastError();
  const auto record_and = [&](const std::function<cudaError_t(cudaStream_t)>& call) {
    return [=](cudaStream_t capturing) {
      EXPECT(cudaEventRecord(inside, capturing) == cudaSuccess);
      return call(capturing);
    };
  };
  expect_forbidden("cudaEventQuery", kGlobal, cudaErrorCapturedEvent,
                   record_and([=](cudaStream_t) { return cudaEventQuery(inside); }));
  expect_forbidden("cudaStreamWaitEvent", kGlobal, cudaErrorNotSupported,
                   record_and([=](cudaStream_t) { return cudaStreamWaitEvent(other, inside, 0); }));
  expect_forbidden(
      "cudaStreamWaitEvent", kGlobal, cudaErrorStreamCaptureIsolation,
      [=](cudaStream_t capturing) { return cudaStreamWaitEvent(capturing, outside, 0); });
}

CHECK(forgotten_captures) {
  cudaStream_t stream = new_stream();
  EXPECT(cudaStreamBeginCapture(stream, kGlobal) == cudaSuccess);
  ptxcpu_reset_error();  // as a test does that failed in a capture
  EXPECT(status_of(stream) == cudaStreamCaptureStatusNone);
  EXPECT(allocate_and_free(stream) == cudaSuccess);
  EXPECT(cudaStreamBeginCapture(stream, kGlobal) == cudaSuccess);
  EXPECT(cudaStreamDestroy(stream) == cudaSuccess);
  EXPECT(allocate_and_free(nullptr) == cudaSuccess);
}

}  // namespace
