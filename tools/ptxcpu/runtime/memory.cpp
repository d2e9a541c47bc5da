#include "memory.hpp"

#include <cstdio>

#include "host_mappings.hpp"

namespace ptxcpu {

namespace {

struct NearestBuffer {
  int index = -1;
  u64 bytes = 0;
  i64 offset = 0;
};

NearestBuffer nearest_buffer(const std::vector<Range>& buffers, u64 address) {
  NearestBuffer nearest;
  u64 best_distance = ~0ull;
  for (size_t i = 0; i < buffers.size(); ++i) {
    const Range& buffer = buffers[i];
    const bool inside = address >= buffer.begin && address < buffer.end;
    const u64 outside_by = address < buffer.begin ? buffer.begin - address : address - buffer.end;
    const u64 distance = inside ? 0 : outside_by;
    if (distance >= best_distance) continue;
    best_distance = distance;
    nearest = {static_cast<int>(i), buffer.end - buffer.begin,
               static_cast<i64>(address - buffer.begin)};
  }
  return nearest;
}

}  // namespace

void find_buffer(Thread& t, u64 address, u32 bytes, Range& cache, Access access, int line,
                 const char* what) {
  const Launch& launch = *t.worker->launch;
  for (const Range& buffer : launch.buffers) {
    if (!buffer.contains(address, bytes)) continue;
    cache = buffer;
    return;
  }
  if (launch.options.allow_unregistered) {
    const bool for_writing = access != Access::kRead;
    if (find_host_mapping(address, bytes, for_writing, cache)) return;
    fail(t, Fault::kIllegalAddress, line,
         "%s of %u bytes at 0x%llx: no such memory in this process", what, bytes,
         static_cast<unsigned long long>(address));
  }
  const NearestBuffer nearest = nearest_buffer(launch.buffers, address);
  fail(t, Fault::kIllegalAddress, line,
       "%s of %u bytes at 0x%llx is out of bounds (nearest buffer #%d of %llu bytes, byte offset "
       "%lld)",
       what, bytes, static_cast<unsigned long long>(address), nearest.index,
       static_cast<unsigned long long>(nearest.bytes), static_cast<long long>(nearest.offset));
}

void fail_misaligned(Thread& t, u64 address, int bytes, int line, const char* what) {
  fail(t, Fault::kMisalignedAddress, line, "%s of %d bytes at 0x%llx is misaligned", what, bytes,
       static_cast<unsigned long long>(address));
}

void watch_shared(Thread& t, u32 offset, u32 bytes, Access access, bool may_yield, int line) {
  const LaunchOptions& options = t.worker->launch->options;
  if (may_yield && options.stress && t.worker->chance_in_1000(options.stress)) yield(t);
  // Atomics are ordered by the hardware, so they take no part in race detection.
  if (options.detect_races && access != Access::kAtomic) check_race(t, offset, bytes, access, line);
}

void fail_shared(Thread& t, u32 offset, int bytes, int line, const char* what) {
  if (offset & (bytes - 1)) {
    fail(t, Fault::kMisalignedAddress, line, "%s of %d bytes at shared+%u is misaligned", what,
         bytes, offset);
  }
  fail(t, Fault::kIllegalAddress, line,
       "%s of %d bytes at shared+%u is beyond the %u bytes of shared memory", what, bytes, offset,
       t.shared_bytes);
}

// Two accesses race if at least one writes, they come from different threads, and neither a block
// barrier nor, within one warp, a warp collective lies between them. Warp collectives count because
// *.sync instructions order the memory accesses of the participating lanes.
void check_race(Thread& t, u32 offset, u32 bytes, Access access, int line) {
  const u32 barrier_epoch = t.worker->barrier_epoch;
  const u32 warp_epoch = t.warp->epoch;
  const i32 self = static_cast<i32>(t.linear);
  const auto conflicts = [&](i32 other, u32 other_barrier_epoch, u32 other_warp_epoch) {
    const bool another_thread = other >= 0 && other != self;
    if (!another_thread || other_barrier_epoch != barrier_epoch) return false;
    const bool another_warp = (other >> 5) != (self >> 5);
    return another_warp || other_warp_epoch == warp_epoch;
  };
  for (u32 i = offset; i < offset + bytes; ++i) {
    SharedByte& byte = t.worker->shadow[i];
    if (byte.copying != SharedByte::kNobody) {
      fail(t, Fault::kRace, line,
           "shared memory race: %s of shared+%u, where a cp.async of thread %d was not waited for",
           access == Access::kWrite ? "write" : "read", i, byte.copying);
    }
    if (conflicts(byte.writer, byte.write_barrier_epoch, byte.write_warp_epoch)) {
      fail(t, Fault::kRace, line,
           "shared memory race: %s of shared+%u, written by thread %d in the same barrier interval",
           access == Access::kWrite ? "write" : "read", i, byte.writer);
    }
    const bool read_this_interval = byte.read_barrier_epoch == barrier_epoch;
    if (access == Access::kWrite) {
      if (read_this_interval && byte.reader == SharedByte::kSeveralWarps) {
        fail(t, Fault::kRace, line,
             "shared memory race: write of shared+%u, read by several warps in the same barrier "
             "interval",
             i);
      }
      if (conflicts(byte.reader, byte.read_barrier_epoch, byte.read_warp_epoch)) {
        fail(t, Fault::kRace, line,
             "shared memory race: write of shared+%u, read by thread %d in the same barrier "
             "interval",
             i, byte.reader);
      }
      byte.writer = self;
      byte.write_barrier_epoch = barrier_epoch;
      byte.write_warp_epoch = warp_epoch;
      continue;
    }
    const bool read_by_other_warp = byte.reader >= 0 && (byte.reader >> 5) != (self >> 5);
    const bool several = byte.reader == SharedByte::kSeveralWarps || read_by_other_warp;
    byte.reader = read_this_interval && several ? SharedByte::kSeveralWarps : self;
    byte.read_barrier_epoch = barrier_epoch;
    byte.read_warp_epoch = warp_epoch;
  }
}

void mark_copying(Thread& t, u32 offset, u32 bytes, i32 copying) {
  for (u32 i = offset; i < offset + bytes; ++i) t.worker->shadow[i].copying = copying;
}

}  // namespace ptxcpu
