#include "async_copy.hpp"

#include <utility>

namespace ptxcpu {

namespace {

void copy_now(const Thread& t, const PendingCopy& copy) {
  u8* destination = t.shared + copy.destination;
  if (copy.source_bytes)
    memcpy(destination, reinterpret_cast<const void*>(copy.source), copy.source_bytes);
  memset(destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

bool copies_at_once(Thread& t) {
  switch (t.worker->launch->options.order) {
    case Order::kForward:
      return false;
    case Order::kReverse:
      return true;
    default:
      return t.worker->random() >> 21 & 1;
  }
}

void complete(Thread& t, std::vector<PendingCopy>& copies, int line) {
  const bool detect_races = t.worker->launch->options.detect_races;
  for (const PendingCopy& copy : copies) {
    if (detect_races) {
      mark_copying(t, copy.destination, copy.bytes, SharedByte::kNobody);
      check_race(t, copy.destination, copy.bytes, Access::kWrite, line);
    }
    if (!copy.done) copy_now(t, copy);
  }
  copies.clear();
}

}  // namespace

void issue_async_copy(Thread& t, u32 destination, u64 source, u32 bytes, u32 source_bytes, int site,
                      int line) {
  const bool misaligned = (destination & (bytes - 1)) || (source & (bytes - 1));
  const bool beyond = destination + u64(bytes) > t.shared_bytes;
  if (PTXCPU_UNLIKELY(misaligned || beyond)) {
    fail(t, misaligned ? Fault::kMisalignedAddress : Fault::kIllegalAddress, line,
         "cp.async misaligned or out of shared memory: shared+%u (of %u), 0x%llx, %u bytes",
         destination, t.shared_bytes, static_cast<unsigned long long>(source), bytes);
  }
  if (PTXCPU_UNLIKELY(source_bytes > bytes)) {
    fail(t, Fault::kIllegalAddress, line, "cp.async source size %u > %u", source_bytes, bytes);
  }
  if (source_bytes) {
    Range& cache = t.site_cache[site];
    if (PTXCPU_UNLIKELY(!cache.contains(source, source_bytes))) {
      find_buffer(t, source, source_bytes, cache, Access::kRead, line, "cp.async source");
    }
  }
  if (PTXCPU_UNLIKELY(t.worker->launch->options.detect_races)) {
    check_race(t, destination, bytes, Access::kWrite, line);
    mark_copying(t, destination, bytes, static_cast<i32>(t.linear));
  }
  const PendingCopy copy{destination, source, bytes, source_bytes, copies_at_once(t)};
  if (copy.done) copy_now(t, copy);
  t.uncommitted_copies.push_back(copy);
  t.wait_line = line;
}

void commit_async_group(Thread& t) {
  t.committed_groups.push_back(std::move(t.uncommitted_copies));
  t.uncommitted_copies.clear();
}

void wait_async_groups(Thread& t, u32 keep, int line) {
  while (t.committed_groups.size() > keep) {
    complete(t, t.committed_groups.front(), line);
    t.committed_groups.erase(t.committed_groups.begin());
  }
}

void wait_all_async_copies(Thread& t, int line) {
  wait_async_groups(t, 0, line);
  complete(t, t.uncommitted_copies, line);
}

}  // namespace ptxcpu
