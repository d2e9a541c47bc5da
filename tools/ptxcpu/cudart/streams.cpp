// Streams, events and stream capture. Work is done inside the call that submits it, so streams and
// events are always up to date. While a stream captures, its work is recorded for a graph instead.
#include <chrono>
#include <mutex>
#include <set>
#include <thread>

#include "emulation.hpp"

namespace ptxcpu::cudart {

namespace {

struct Capture {
  std::shared_ptr<Recording> recording = std::make_shared<Recording>();
  cudaStreamCaptureMode mode;
  unsigned long long id;
  std::thread::id thread;
  bool blocking;           // its stream and the legacy stream wait for each other
  std::string invalid_by;  // the call that broke the rules of capture; empty: none did

  bool valid() const { return invalid_by.empty(); }
};

struct Stream {
  int priority = 0;
  bool blocking = true;
  std::shared_ptr<Capture> capture;  // null: not capturing
};

struct Event {
  double recorded_at = 0;
  bool captured = false;  // the last record was in a capture, so it has no time
  std::weak_ptr<Capture> capture;
};

using Captures = std::vector<std::shared_ptr<Capture>>;

std::mutex mutex;  // for everything below
std::set<Stream*> streams;
std::vector<std::weak_ptr<Capture>> captures;
unsigned long long last_capture_id = 0;

Stream legacy_stream;  // never captures
thread_local Stream per_thread_stream;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool is_legacy(cudaStream_t handle) { return handle == nullptr || handle == cudaStreamLegacy; }

/// Null if there is no such stream.
Stream* find_stream(cudaStream_t handle) {
  if (is_legacy(handle)) return &legacy_stream;
  if (handle == cudaStreamPerThread) return &per_thread_stream;
  Stream* stream = reinterpret_cast<Stream*>(handle);
  return streams.count(stream) ? stream : nullptr;
}

Event* event_of(cudaEvent_t handle) { return reinterpret_cast<Event*>(handle); }

/// Captures that no call has invalidated, if `chosen` says so.
template <class Predicate>
Captures valid_captures(Predicate chosen) {
  Captures result;
  for (size_t i = captures.size(); i-- > 0;) {
    const std::shared_ptr<Capture> capture = captures[i].lock();
    if (!capture) {
      captures.erase(captures.begin() + static_cast<std::ptrdiff_t>(i));
    } else if (capture->valid() && chosen(*capture)) {
      result.push_back(capture);
    }
  }
  return result;
}

Captures valid_captures() {
  return valid_captures([](const Capture&) { return true; });
}

/// Success if there is nothing to invalidate.
cudaError_t invalidate(const Captures& broken, cudaError_t error, const std::string& function) {
  if (broken.empty()) return cudaSuccess;
  for (const std::shared_ptr<Capture>& capture : broken) capture->invalid_by = function;
  return finish(error, function + " invalidates a stream capture");
}

cudaError_t already_invalid(const Capture& capture) {
  return finish(cudaErrorStreamCaptureInvalidated,
                "the capture was invalidated by " + capture.invalid_by);
}

/// Work on the legacy stream, or waiting for it, would wait for every blocking stream too.
cudaError_t check_legacy_use(cudaStream_t handle, const std::string& function) {
  if (!is_legacy(handle)) return cudaSuccess;
  const Captures blocking = valid_captures([](const Capture& capture) { return capture.blocking; });
  return invalidate(blocking, cudaErrorStreamCaptureImplicit, function + " on the legacy stream");
}

/// Finds the stream of a call; a capturing stream must still be valid.
cudaError_t open_stream(cudaStream_t handle, const std::string& function, Stream*& stream) {
  if (sticky_error() != cudaSuccess) return sticky_error();
  stream = find_stream(handle);
  if (!stream) return finish(cudaErrorInvalidResourceHandle, function + ": no such stream");
  const cudaError_t error = check_legacy_use(handle, function);
  if (error != cudaSuccess) return error;
  if (stream->capture && !stream->capture->valid()) return already_invalid(*stream->capture);
  return cudaSuccess;
}

/// Nobody can wait for work that was only recorded.
cudaError_t wait_for_stream(cudaStream_t handle, const char* function) {
  std::lock_guard<std::mutex> lock(mutex);
  Stream* stream = nullptr;
  const cudaError_t error = open_stream(handle, function, stream);
  if (error != cudaSuccess) return error;
  if (!stream->capture) return finish(cudaSuccess);
  return invalidate({stream->capture}, cudaErrorStreamCaptureUnsupported, function);
}

/// An event recorded in a capture never happens.
cudaError_t check_event(const Event& event, const char* function) {
  std::lock_guard<std::mutex> lock(mutex);
  if (!event.captured) return cudaSuccess;
  const std::shared_ptr<Capture> capture = event.capture.lock();
  if (capture && capture->valid()) capture->invalid_by = function;
  return finish(cudaErrorCapturedEvent, std::string(function) + ": recorded in a capture");
}

cudaError_t wait_for_event(const Event& event, const char* function) {
  const cudaError_t captured = check_event(event, function);
  if (captured != cudaSuccess) return captured;
  const cudaError_t unsafe = check_unsafe_call(function);
  return unsafe == cudaSuccess ? finish(cudaSuccess) : unsafe;
}

cudaError_t create_stream(cudaStream_t* handle, unsigned flags, int priority) {
  std::lock_guard<std::mutex> lock(mutex);
  Stream* stream = new Stream{priority, (flags & cudaStreamNonBlocking) == 0, nullptr};
  streams.insert(stream);
  *handle = reinterpret_cast<cudaStream_t>(stream);
  return finish(cudaSuccess);
}

double now_in_milliseconds() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(time).count();
}

cudaError_t capture_state(cudaStream_t handle, cudaStreamCaptureStatus* status,
                          unsigned long long* id) {
  std::lock_guard<std::mutex> lock(mutex);
  const Stream* stream = find_stream(handle);
  if (!stream || !status) return finish(cudaErrorInvalidValue);
  const bool implicit = is_legacy(handle) && !valid_captures([](const Capture& capture) {
                                                return capture.blocking;
                                              }).empty();
  if (implicit) return finish(cudaErrorStreamCaptureImplicit);  // a question invalidates nothing
  *status = cudaStreamCaptureStatusNone;
  if (!stream->capture) return finish(cudaSuccess);
  *status =
      stream->capture->valid() ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusInvalidated;
  if (id && stream->capture->valid()) *id = stream->capture->id;
  return finish(cudaSuccess);
}

}  // namespace

cudaError_t submit(cudaStream_t handle, Operation operation) {
  {
    std::lock_guard<std::mutex> lock(mutex);
    Stream* stream = nullptr;
    const cudaError_t error = open_stream(handle, "work", stream);
    if (error != cudaSuccess) return error;
    if (stream->capture) {
      stream->capture->recording->operations.push_back(std::move(operation));
      return finish(cudaSuccess);
    }
  }
  return operation();
}

std::shared_ptr<Recording> recording_of(cudaStream_t handle) {
  std::lock_guard<std::mutex> lock(mutex);
  const Stream* stream = find_stream(handle);
  const bool capturing = stream && stream->capture && stream->capture->valid();
  return capturing ? stream->capture->recording : nullptr;
}

cudaError_t check_unsafe_call(const char* function) {
  std::lock_guard<std::mutex> lock(mutex);
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  const Captures forbidding = valid_captures([](const Capture& capture) {
    if (capture.thread == std::this_thread::get_id()) {
      return capture.mode != cudaStreamCaptureModeRelaxed;
    }
    return capture.mode == cudaStreamCaptureModeGlobal &&
           thread_mode == cudaStreamCaptureModeGlobal;
  });
  return invalidate(forbidding, cudaErrorStreamCaptureUnsupported, function);
}

void abandon_captures() {
  std::lock_guard<std::mutex> lock(mutex);
  for (Stream* stream : streams) stream->capture.reset();
  per_thread_stream.capture.reset();
}

}  // namespace ptxcpu::cudart

using namespace ptxcpu::cudart;

extern "C" {

// ---- Streams ----

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return create_stream(stream, cudaStreamDefault, 0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return create_stream(stream, flags, 0);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return create_stream(stream, flags, priority);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = 0;
  return finish(cudaSuccess);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  std::lock_guard<std::mutex> lock(mutex);
  Stream* stream = reinterpret_cast<Stream*>(handle);
  if (!streams.erase(stream)) return finish(cudaErrorInvalidResourceHandle);
  delete stream;
  return finish(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return wait_for_stream(stream, "cudaStreamSynchronize");
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return wait_for_stream(stream, "cudaStreamQuery");
}

cudaError_t cudaDeviceSynchronize() {
  std::lock_guard<std::mutex> lock(mutex);
  const cudaError_t error =
      invalidate(valid_captures(), cudaErrorStreamCaptureUnsupported, "cudaDeviceSynchronize");
  return error == cudaSuccess ? finish(cudaSuccess) : error;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return submit(stream, [function, data] {
    function(data);
    return finish(cudaSuccess);
  });
}

// ---- Events ----

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return finish(cudaSuccess);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return cudaEventCreate(event);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  std::lock_guard<std::mutex> lock(mutex);
  Stream* stream = nullptr;
  const cudaError_t error = open_stream(handle, "cudaEventRecord", stream);
  if (error != cudaSuccess) return error;
  event_of(event)->captured = stream->capture != nullptr;
  event_of(event)->capture = stream->capture;
  event_of(event)->recorded_at = now_in_milliseconds();
  return finish(cudaSuccess);
}

/// A capture cannot spread to a second stream here, so inside a capture only its own events count.
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  constexpr const char* name = "cudaStreamWaitEvent";
  std::lock_guard<std::mutex> lock(mutex);
  Stream* stream = nullptr;
  const cudaError_t error = open_stream(handle, name, stream);
  if (error != cudaSuccess) return error;
  const std::shared_ptr<Capture> capture = event_of(event)->capture.lock();
  if (!event_of(event)->captured) {
    if (!stream->capture) return finish(cudaSuccess);
    return invalidate({stream->capture}, cudaErrorStreamCaptureIsolation, name);
  }
  if (!capture) return finish(cudaErrorCapturedEvent);
  if (capture == stream->capture) return finish(cudaSuccess);
  if (!stream->capture) return invalidate({capture}, cudaErrorNotSupported, name);
  return invalidate({capture, stream->capture}, cudaErrorStreamCaptureMerge, name);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return wait_for_event(*event_of(event), "cudaEventSynchronize");
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return wait_for_event(*event_of(event), "cudaEventQuery");
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  for (const cudaEvent_t event : {start, end}) {
    const cudaError_t error = check_event(*event_of(event), "cudaEventElapsedTime");
    if (error != cudaSuccess) return error;
  }
  *milliseconds = static_cast<float>(event_of(end)->recorded_at - event_of(start)->recorded_at);
  return finish(cudaSuccess);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event_of(event);
  return finish(cudaSuccess);
}

// ---- Capture ----

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  std::lock_guard<std::mutex> lock(mutex);
  if (sticky_error() != cudaSuccess) return sticky_error();
  Stream* stream = find_stream(handle);
  if (!stream) return finish(cudaErrorInvalidResourceHandle);
  if (is_legacy(handle)) return finish(cudaErrorStreamCaptureUnsupported, "the legacy stream");
  if (stream->capture) return finish(cudaErrorIllegalState, "the stream is capturing already");
  stream->capture = std::make_shared<Capture>();
  stream->capture->mode = mode;
  stream->capture->id = ++last_capture_id;
  stream->capture->thread = std::this_thread::get_id();
  stream->capture->blocking = stream->blocking;
  captures.push_back(stream->capture);
  return finish(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  std::lock_guard<std::mutex> lock(mutex);
  Stream* stream = find_stream(handle);
  if (!stream) return finish(cudaErrorInvalidResourceHandle);
  if (!graph) return finish(cudaErrorInvalidValue);
  *graph = nullptr;
  if (!stream->capture) return finish(cudaErrorIllegalState, "the stream is not capturing");
  const bool bound_to_thread = stream->capture->mode != cudaStreamCaptureModeRelaxed;
  if (bound_to_thread && stream->capture->thread != std::this_thread::get_id()) {
    return finish(cudaErrorStreamCaptureWrongThread);
  }
  const std::shared_ptr<Capture> capture = std::move(stream->capture);
  stream->capture.reset();
  if (!capture->valid()) return already_invalid(*capture);
  *graph = make_graph(capture->recording);
  return finish(cudaSuccess);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return capture_state(stream, status, nullptr);
}

#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* dependency_count) {
  if (edges) return finish(cudaErrorNotSupported, "edges of a capture");
#else
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                        unsigned long long* id, cudaGraph_t* graph,
                                        const cudaGraphNode_t** dependencies,
                                        size_t* dependency_count) {
#endif
  if (graph || dependencies || dependency_count) {
    return finish(cudaErrorNotSupported, "the graph of a capture that has not ended");
  }
  return capture_state(stream, status, id);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return finish(cudaSuccess);
}

}  // extern "C"
