// Device memory is host memory. A buffer is known to the bounds checks if it came from cudaMalloc
// or was registered with ptxcpu_register_buffer.
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>

#include "../runtime/host_mappings.hpp"
#include "emulation.hpp"

namespace ptxcpu::cudart {

namespace {

constexpr size_t kAllocationAlignment = 256;  // as cudaMalloc guarantees
constexpr int kPoison = 0xff;  // NaN, to expose reads of memory that was never written

/// What is known to begin at one address.
struct Buffer {
  size_t allocated_bytes = 0;  // by cudaMalloc
  bool belongs_to_graph = false;
  std::vector<size_t> registered_bytes;  // one entry a registration, the biggest first

  bool is_allocated() const { return allocated_bytes > 0; }

  size_t bytes() const {
    return std::max(allocated_bytes, registered_bytes.empty() ? 0 : registered_bytes.front());
  }
};

std::mutex buffers_mutex;
std::map<u64, Buffer> buffers;

u64 address_of(const void* pointer) { return reinterpret_cast<u64>(pointer); }

using BufferIterator = std::map<u64, Buffer>::iterator;

/// A buffer is forgotten when it is neither allocated nor registered. Needs the lock.
void forget_if_unused(BufferIterator found) {
  if (!found->second.is_allocated() && found->second.registered_bytes.empty()) buffers.erase(found);
}

/// The buffer that cudaMalloc made at this address, or the end. Needs the lock.
BufferIterator find_allocation(const void* pointer) {
  const auto found = buffers.find(address_of(pointer));
  return found == buffers.end() || found->second.is_allocated() ? found : buffers.end();
}

/// A range that starts inside known buffers must end inside one of them.
bool stays_in_a_buffer(const void* pointer, size_t bytes) {
  std::lock_guard<std::mutex> lock(buffers_mutex);
  const u64 address = address_of(pointer);
  bool starts_in_one = false;
  for (const auto& [begin, buffer] : buffers) {
    if (begin > address) break;
    const Range range{begin, begin + buffer.bytes()};
    if (range.contains(address, bytes)) return true;
    starts_in_one = starts_in_one || range.contains(address, 1);
  }
  return !starts_in_one;
}

cudaError_t allocate(void** pointer, size_t bytes, bool belongs_to_graph = false) {
  if (!pointer) return finish(cudaErrorInvalidValue);
  *pointer = nullptr;
  if (bytes == 0) return finish(cudaSuccess);
  const size_t rounded =
      (bytes + kAllocationAlignment - 1) / kAllocationAlignment * kAllocationAlignment;
  void* memory = aligned_alloc(kAllocationAlignment, rounded);
  if (!memory) return finish(cudaErrorMemoryAllocation);
  memset(memory, kPoison, rounded);
  std::lock_guard<std::mutex> lock(buffers_mutex);
  Buffer& buffer = buffers[address_of(memory)];
  buffer.allocated_bytes = bytes;
  buffer.belongs_to_graph = belongs_to_graph;
  *pointer = memory;
  return finish(cudaSuccess);
}

cudaError_t allocate_now(const char* function, void** pointer, size_t bytes) {
  const cudaError_t forbidden = check_unsafe_call(function);
  return forbidden == cudaSuccess ? allocate(pointer, bytes) : forbidden;
}

void free_allocation(void* pointer) {
  std::lock_guard<std::mutex> lock(buffers_mutex);
  const auto found = find_allocation(pointer);
  found->second.allocated_bytes = 0;
  found->second.belongs_to_graph = false;
  forget_if_unused(found);
  free(pointer);
}

/// Memory of a graph stays until the graph and all that was instantiated from it are destroyed.
cudaError_t release(void* pointer) {
  bool belongs_to_graph = false;
  {
    std::lock_guard<std::mutex> lock(buffers_mutex);
    const auto found = find_allocation(pointer);
    if (found == buffers.end()) return finish(cudaErrorInvalidValue);
    belongs_to_graph = found->second.belongs_to_graph;
    if (belongs_to_graph) memset(pointer, kPoison, found->second.allocated_bytes);
  }
  if (!belongs_to_graph) free_allocation(pointer);
  return finish(cudaSuccess);
}

cudaError_t release_now(const char* function, void* pointer) {
  const cudaError_t forbidden = check_unsafe_call(function);
  if (forbidden != cudaSuccess) return forbidden;
  return pointer ? release(pointer) : finish(cudaSuccess);
}

bool belongs_to_graph(const void* pointer) {
  std::lock_guard<std::mutex> lock(buffers_mutex);
  const auto found = find_allocation(pointer);
  return found != buffers.end() && found->second.belongs_to_graph;
}

/// The rows of a pitched block of memory.
struct Rows {
  u8* first;
  size_t pitch;

  u8* operator[](size_t row) const { return first + row * pitch; }
};

bool stay_in_buffers(const Rows& rows, size_t row_bytes, size_t count) {
  for (size_t row = 0; row < count; ++row) {
    if (!stays_in_a_buffer(rows[row], row_bytes)) return false;
  }
  return true;
}

/// Runs or records `work` on one row after the other, if both ends of it are inside their buffers.
/// They are looked at again when a graph is launched: by then, buffers may have gone.
template <class Work>
cudaError_t submit_rows(const char* function, cudaStream_t stream, Rows to, Rows from,
                        size_t row_bytes, size_t count, Work work) {
  const auto is_valid = [=] {
    return stay_in_buffers(to, row_bytes, count) && stay_in_buffers(from, row_bytes, count);
  };
  const std::string mistake =
      std::string(function) + " of " + std::to_string(row_bytes) + " bytes goes beyond its buffer";
  if (!is_valid()) return finish(cudaErrorInvalidValue, mistake);
  return submit(stream, [=] {
    if (!is_valid()) return make_sticky(cudaErrorIllegalAddress, mistake);
    for (size_t row = 0; row < count && row_bytes > 0; ++row) work(to[row], from[row]);
    return finish(cudaSuccess);
  });
}

cudaError_t copy_rows(void* destination, size_t destination_pitch, const void* source,
                      size_t source_pitch, size_t width, size_t height, cudaStream_t stream) {
  if (width > destination_pitch || width > source_pitch) return finish(cudaErrorInvalidValue);
  const Rows to{static_cast<u8*>(destination), destination_pitch};
  const Rows from{static_cast<u8*>(const_cast<void*>(source)), source_pitch};
  const auto copy_row = [width](u8* to_row, const u8* from_row) {
    memmove(to_row, from_row, width);
  };
  return submit_rows("cudaMemcpy", stream, to, from, width, height, copy_row);
}

cudaError_t copy(void* destination, const void* source, size_t bytes, cudaStream_t stream) {
  return copy_rows(destination, bytes, source, bytes, bytes, 1, stream);
}

/// A copy that the caller waits for; it goes through the legacy stream.
cudaError_t copy_now(const char* function, void* destination, const void* source, size_t bytes) {
  const cudaError_t forbidden = check_unsafe_call(function);
  if (forbidden != cudaSuccess) return forbidden;
  return copy(destination, source, bytes, cudaStreamLegacy);
}

cudaError_t fill(void* destination, int value, size_t bytes, cudaStream_t stream) {
  const Rows row{static_cast<u8*>(destination), bytes};
  const auto fill_row = [value, bytes](u8* to, const u8*) { memset(to, value, bytes); };
  return submit_rows("cudaMemset", stream, row, row, bytes, 1, fill_row);
}

/// The storage of a device variable, if `bytes` at `offset` are inside it.
u8* symbol_address(const void* symbol, size_t bytes, size_t offset) {
  const Variable* variable = find_variable(symbol);
  if (!variable || offset + bytes > variable->bytes) return nullptr;
  return variable->address + offset;
}

}  // namespace

std::vector<Range> registered_buffers() {
  std::lock_guard<std::mutex> lock(buffers_mutex);
  std::vector<Range> ranges;
  ranges.reserve(buffers.size());
  for (const auto& [begin, buffer] : buffers) ranges.push_back({begin, begin + buffer.bytes()});
  return ranges;
}

bool has_unregistered_pointer(const std::vector<u8>& parameters, const std::vector<Range>& ranges) {
  constexpr u64 lowest_address = 0x10000;  // small integers are not pointers
  bool mappings_are_fresh = false;
  for (size_t offset = 0; offset + sizeof(u64) <= parameters.size(); offset += sizeof(u64)) {
    const u64 word = load<u64>(&parameters[offset]);
    if (word < lowest_address) continue;
    // One past the end counts as registered: it is the address of an empty tail.
    const bool registered = std::any_of(ranges.begin(), ranges.end(), [&](const Range& range) {
      return word >= range.begin && word <= range.end;
    });
    if (registered || !is_mapped(word)) continue;
    if (!mappings_are_fresh) refresh_host_mappings();
    mappings_are_fresh = true;
    Range mapping;
    if (find_host_mapping(word, 1, false, mapping)) return true;
  }
  return false;
}

}  // namespace ptxcpu::cudart

using namespace ptxcpu;
using namespace ptxcpu::cudart;

extern "C" {

/// The same address may be registered several times, with different sizes: the biggest counts.
PTXCPU_EXPORT void ptxcpu_register_buffer(const void* pointer, size_t bytes) {
  if (!pointer) return;
  std::lock_guard<std::mutex> lock(buffers_mutex);
  std::vector<size_t>& sizes = buffers[address_of(pointer)].registered_bytes;
  sizes.insert(std::upper_bound(sizes.begin(), sizes.end(), bytes, std::greater<>()), bytes);
}

/// Ends one registration. The call does not say which: the smallest one goes first, so that
/// whatever is still registered stays valid.
PTXCPU_EXPORT void ptxcpu_unregister_buffer(const void* pointer) {
  std::lock_guard<std::mutex> lock(buffers_mutex);
  const auto found = buffers.find(address_of(pointer));
  if (found == buffers.end() || found->second.registered_bytes.empty()) return;
  found->second.registered_bytes.pop_back();
  forget_if_unused(found);
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return allocate_now("cudaMalloc", pointer, bytes);
}

/// During a capture the memory is allocated at once and belongs to the graph. Every launch of the
/// graph starts with memory that is not written yet.
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
  const std::shared_ptr<Recording> recording = recording_of(stream);
  if (!recording) return submit(stream, [=] { return allocate(pointer, bytes); });
  const cudaError_t error = allocate(pointer, bytes, true);
  if (error != cudaSuccess || bytes == 0) return error;
  void* memory = *pointer;
  recording->memory.emplace_back(memory, free_allocation);
  return submit(stream, [memory, bytes] {
    memset(memory, kPoison, bytes);
    return finish(cudaSuccess);
  });
}

cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned) {
  return allocate_now("cudaMallocManaged", pointer, bytes);
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return allocate_now("cudaMallocHost", pointer, bytes);
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return allocate_now("cudaHostAlloc", pointer, bytes);
}

cudaError_t cudaMallocPitch(void** pointer, size_t* pitch, size_t width, size_t height) {
  *pitch = (width + kAllocationAlignment - 1) / kAllocationAlignment * kAllocationAlignment;
  return allocate_now("cudaMallocPitch", pointer, *pitch * height);
}

cudaError_t cudaFree(void* pointer) { return release_now("cudaFree", pointer); }

cudaError_t cudaFreeHost(void* pointer) { return release_now("cudaFreeHost", pointer); }

/// A capture can only free memory that a capture allocated.
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
  if (!pointer) return finish(cudaSuccess);
  if (recording_of(stream) && !belongs_to_graph(pointer)) {
    return finish(cudaErrorInvalidValue, "cudaFreeAsync of memory from outside the capture");
  }
  return submit(stream, [pointer] { return release(pointer); });
}

cudaError_t cudaMemcpy(void* destination, const void* source, size_t bytes, cudaMemcpyKind) {
  return copy_now("cudaMemcpy", destination, source, bytes);
}

cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  return copy(destination, source, bytes, stream);
}

cudaError_t cudaMemcpy2D(void* destination, size_t destination_pitch, const void* source,
                         size_t source_pitch, size_t width, size_t height, cudaMemcpyKind) {
  const cudaError_t forbidden = check_unsafe_call("cudaMemcpy2D");
  if (forbidden != cudaSuccess) return forbidden;
  return copy_rows(destination, destination_pitch, source, source_pitch, width, height,
                   cudaStreamLegacy);
}

cudaError_t cudaMemcpy2DAsync(void* destination, size_t destination_pitch, const void* source,
                              size_t source_pitch, size_t width, size_t height, cudaMemcpyKind,
                              cudaStream_t stream) {
  return copy_rows(destination, destination_pitch, source, source_pitch, width, height, stream);
}

cudaError_t cudaMemset(void* destination, int value, size_t bytes) {
  return fill(destination, value, bytes, cudaStreamLegacy);
}

cudaError_t cudaMemsetAsync(void* destination, int value, size_t bytes, cudaStream_t stream) {
  return fill(destination, value, bytes, stream);
}

cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* source, size_t bytes, size_t offset,
                               cudaMemcpyKind) {
  u8* address = symbol_address(symbol, bytes, offset);
  if (!address) return finish(cudaErrorInvalidSymbol);
  return copy_now("cudaMemcpyToSymbol", address, source, bytes);
}

cudaError_t cudaMemcpyToSymbolAsync(const void* symbol, const void* source, size_t bytes,
                                    size_t offset, cudaMemcpyKind, cudaStream_t stream) {
  u8* address = symbol_address(symbol, bytes, offset);
  if (!address) return finish(cudaErrorInvalidSymbol);
  return copy(address, source, bytes, stream);
}

cudaError_t cudaMemcpyFromSymbol(void* destination, const void* symbol, size_t bytes, size_t offset,
                                 cudaMemcpyKind) {
  const u8* address = symbol_address(symbol, bytes, offset);
  if (!address) return finish(cudaErrorInvalidSymbol);
  return copy_now("cudaMemcpyFromSymbol", destination, address, bytes);
}

cudaError_t cudaMemcpyFromSymbolAsync(void* destination, const void* symbol, size_t bytes,
                                      size_t offset, cudaMemcpyKind, cudaStream_t stream) {
  const u8* address = symbol_address(symbol, bytes, offset);
  if (!address) return finish(cudaErrorInvalidSymbol);
  return copy(destination, address, bytes, stream);
}

cudaError_t cudaGetSymbolAddress(void** pointer, const void* symbol) {
  *pointer = symbol_address(symbol, 0, 0);
  return finish(*pointer ? cudaSuccess : cudaErrorInvalidSymbol);
}

cudaError_t cudaGetSymbolSize(size_t* bytes, const void* symbol) {
  const Variable* variable = find_variable(symbol);
  if (!variable) return finish(cudaErrorInvalidSymbol);
  *bytes = variable->bytes;
  return finish(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  constexpr size_t gigabyte = size_t(1) << 30;
  *available = 16 * gigabyte;
  *total = 16 * gigabyte;
  return finish(cudaSuccess);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const std::vector<Range> ranges = registered_buffers();
  const bool registered = std::any_of(ranges.begin(), ranges.end(), [&](const Range& range) {
    return range.contains(address_of(pointer), 1);
  });
  *attributes = {};
  attributes->type = registered ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->devicePointer = const_cast<void*>(pointer);
  attributes->hostPointer = const_cast<void*>(pointer);
  return finish(cudaSuccess);
}

}  // extern "C"
