// CUDA graphs made by stream capture. A graph is the list of captured operations; launching it does
// them again in the order of the calls. Graphs cannot be built node by node.
#include <map>
#include <mutex>

#include "emulation.hpp"

namespace ptxcpu::cudart {

namespace {

/// Numbers as handles: unlike an address, the handle of a destroyed object is never given out
/// again.
template <class Handle>
class HandleTable {
 public:
  Handle add(std::shared_ptr<Recording> recording) {
    std::lock_guard<std::mutex> lock(mutex_);
    const Handle handle = reinterpret_cast<Handle>(++last_);
    recordings_[handle] = std::move(recording);
    return handle;
  }

  /// Null if there is no such object.
  std::shared_ptr<Recording> find(Handle handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = recordings_.find(handle);
    return found == recordings_.end() ? nullptr : found->second;
  }

  cudaError_t remove(Handle handle) {
    std::shared_ptr<Recording> last_use;  // ends after the lock, since it may free memory
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = recordings_.find(handle);
    if (found == recordings_.end()) return finish(cudaErrorInvalidValue, "no such graph");
    last_use = std::move(found->second);
    recordings_.erase(found);
    return finish(cudaSuccess);
  }

 private:
  std::mutex mutex_;
  std::map<Handle, std::shared_ptr<Recording>> recordings_;
  u64 last_ = 0;
};

// Never destroyed: at the end of the process, the memory of leaked graphs has nowhere to go.
HandleTable<cudaGraph_t>& graphs = *new HandleTable<cudaGraph_t>;
HandleTable<cudaGraphExec_t>& executables = *new HandleTable<cudaGraphExec_t>;

cudaError_t replay(const Recording& recording) {
  for (const Operation& operation : recording.operations) {
    const cudaError_t error = operation();
    if (error != cudaSuccess) return error;
  }
  return finish(cudaSuccess);
}

cudaError_t instantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
  if (flags & cudaGraphInstantiateFlagDeviceLaunch) {
    return finish(cudaErrorNotSupported, "graphs launched by kernels");
  }
  const std::shared_ptr<Recording> recording = graphs.find(graph);
  if (!recording || !executable) return finish(cudaErrorInvalidValue, "no such graph");
  *executable = executables.add(recording);  // shared: a recording never changes
  return finish(cudaSuccess);
}

}  // namespace

cudaGraph_t make_graph(std::shared_ptr<Recording> recording) {
  return graphs.add(std::move(recording));
}

}  // namespace ptxcpu::cudart

using namespace ptxcpu::cudart;

extern "C" {

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long flags) {
  return instantiate(executable, graph, flags);
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long flags) {
  return instantiate(executable, graph, flags);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t) {
  return finish(executables.find(executable) ? cudaSuccess : cudaErrorInvalidValue);
}

/// On a capturing stream the launch is recorded too, as a child graph is.
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const std::shared_ptr<Recording> recording = executables.find(executable);
  if (!recording) return finish(cudaErrorInvalidValue, "no such executable graph");
  return submit(stream, [recording] { return replay(*recording); });
}

/// Only the number of nodes is known.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes) return finish(cudaErrorNotSupported, "nodes of a graph");
  const std::shared_ptr<Recording> recording = graphs.find(graph);
  if (!recording) return finish(cudaErrorInvalidValue, "no such graph");
  *count = recording->operations.size();
  return finish(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return graphs.remove(graph); }

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return executables.remove(executable);
}

}  // extern "C"
