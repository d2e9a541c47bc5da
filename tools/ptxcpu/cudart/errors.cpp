// Error state, as in the real runtime: an ordinary error is returned once by cudaGetLastError and
// then forgotten; a fault inside a kernel is sticky.
#include <map>
#include <mutex>

#include "emulation.hpp"

namespace ptxcpu::cudart {

namespace {

std::mutex error_mutex;
cudaError_t sticky = cudaSuccess;
std::string message;  // of the last error that had one
thread_local cudaError_t last = cudaSuccess;

struct ErrorText {
  const char* name;
  const char* description;
};

const ErrorText& text_of(cudaError_t error) {
  static const ErrorText unknown{"unrecognized error code", "unrecognized error code"};
  static const std::map<cudaError_t, ErrorText> texts = {
      {cudaSuccess, {"cudaSuccess", "no error"}},
      {cudaErrorInvalidValue, {"cudaErrorInvalidValue", "invalid argument"}},
      {cudaErrorMemoryAllocation, {"cudaErrorMemoryAllocation", "out of memory"}},
      {cudaErrorInvalidConfiguration,
       {"cudaErrorInvalidConfiguration", "invalid configuration argument"}},
      {cudaErrorInvalidSymbol, {"cudaErrorInvalidSymbol", "invalid device symbol"}},
      {cudaErrorInvalidDeviceFunction,
       {"cudaErrorInvalidDeviceFunction", "invalid device function"}},
      {cudaErrorInvalidDevice, {"cudaErrorInvalidDevice", "invalid device ordinal"}},
      {cudaErrorInvalidResourceHandle,
       {"cudaErrorInvalidResourceHandle", "invalid resource handle"}},
      {cudaErrorNotReady, {"cudaErrorNotReady", "device not ready"}},
      {cudaErrorIllegalAddress,
       {"cudaErrorIllegalAddress", "an illegal memory access was encountered"}},
      {cudaErrorLaunchOutOfResources,
       {"cudaErrorLaunchOutOfResources", "too many resources requested for launch"}},
      {cudaErrorLaunchTimeout,
       {"cudaErrorLaunchTimeout", "the launch timed out and was terminated"}},
      {cudaErrorAssert, {"cudaErrorAssert", "device-side assert triggered"}},
      {cudaErrorMisalignedAddress, {"cudaErrorMisalignedAddress", "misaligned address"}},
      {cudaErrorLaunchFailure, {"cudaErrorLaunchFailure", "unspecified launch failure"}},
      {cudaErrorNotSupported, {"cudaErrorNotSupported", "operation not supported"}},
      {cudaErrorStreamCaptureUnsupported,
       {"cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"}},
      {cudaErrorStreamCaptureInvalidated,
       {"cudaErrorStreamCaptureInvalidated",
        "operation failed due to a previous error during capture"}},
      {cudaErrorStreamCaptureMerge,
       {"cudaErrorStreamCaptureMerge", "operation would result in a merge of separate captures"}},
      {cudaErrorStreamCaptureIsolation,
       {"cudaErrorStreamCaptureIsolation", "dependency created on uncaptured work"}},
      {cudaErrorStreamCaptureImplicit,
       {"cudaErrorStreamCaptureImplicit",
        "operation would make the legacy stream depend on a capturing blocking stream"}},
      {cudaErrorStreamCaptureWrongThread,
       {"cudaErrorStreamCaptureWrongThread",
        "attempt to end a capture from a thread that did not begin it"}},
      {cudaErrorCapturedEvent,
       {"cudaErrorCapturedEvent", "operation not permitted on an event recorded in a capture"}},
      {cudaErrorIllegalState, {"cudaErrorIllegalState", "operation not permitted in this state"}},
      {cudaErrorUnknown, {"cudaErrorUnknown", "unknown error"}},
  };
  const auto found = texts.find(error);
  return found == texts.end() ? unknown : found->second;
}

void reset() {
  std::lock_guard<std::mutex> lock(error_mutex);
  sticky = cudaSuccess;
  last = cudaSuccess;
  message.clear();
}

}  // namespace

cudaError_t sticky_error() {
  std::lock_guard<std::mutex> lock(error_mutex);
  return sticky;
}

cudaError_t finish(cudaError_t error) {
  const cudaError_t earlier = sticky_error();
  if (earlier != cudaSuccess) return earlier;
  if (error != cudaSuccess) last = error;
  return error;
}

cudaError_t finish(cudaError_t error, const std::string& text) {
  const cudaError_t earlier = sticky_error();
  if (earlier != cudaSuccess) return earlier;
  std::lock_guard<std::mutex> lock(error_mutex);
  message = text;
  last = error;
  return error;
}

cudaError_t make_sticky(cudaError_t error, const std::string& text) {
  std::lock_guard<std::mutex> lock(error_mutex);
  if (sticky != cudaSuccess) return sticky;
  sticky = error;
  message = text;
  return error;
}

cudaError_t error_of_fault(Fault fault) {
  switch (fault) {
    case Fault::kNone:
      return cudaSuccess;
    case Fault::kIllegalAddress:
      return cudaErrorIllegalAddress;
    case Fault::kMisalignedAddress:
      return cudaErrorMisalignedAddress;
    case Fault::kAssert:
      return cudaErrorAssert;
    case Fault::kDeadlock:
      return cudaErrorLaunchTimeout;
    default:
      return cudaErrorLaunchFailure;
  }
}

}  // namespace ptxcpu::cudart

using namespace ptxcpu::cudart;

extern "C" {

/// What went wrong, with kernel, PTX line, block and thread; empty if nothing did.
PTXCPU_EXPORT const char* ptxcpu_last_error_message() {
  thread_local std::string copy;
  std::lock_guard<std::mutex> lock(error_mutex);
  copy = message;
  return copy.c_str();
}

/// Forgets all errors, sticky ones too, and ends captures, so that one process can run many tests.
PTXCPU_EXPORT void ptxcpu_reset_error() {
  abandon_captures();
  reset();
}

cudaError_t cudaDeviceReset() {
  abandon_captures();
  reset();
  return cudaSuccess;
}

cudaError_t cudaPeekAtLastError() {
  const cudaError_t earlier = sticky_error();
  return earlier != cudaSuccess ? earlier : last;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) { return text_of(error).name; }

const char* cudaGetErrorString(cudaError_t error) { return text_of(error).description; }

}  // extern "C"
