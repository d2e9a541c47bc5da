// cp.async. The hardware may carry a copy out at any time between its issue and the matching wait.
// Which time depends on the order of the launch: as late as possible (forward), at once (reverse),
// or by coin (random), so that a kernel that reads before waiting, or overwrites the source too
// early, gives wrong results in one of them.
#pragma once
#include "memory.hpp"

namespace ptxcpu {

void issue_async_copy(Thread& t, u32 destination, u64 source, u32 bytes, u32 source_bytes, int site,
                      int line);

void commit_async_group(Thread& t);

/// cp.async.wait_group: carries out the oldest groups until at most `keep` are left.
void wait_async_groups(Thread& t, u32 keep, int line);

/// cp.async.wait_all: carries out everything, uncommitted copies included.
void wait_all_async_copies(Thread& t, int line);

}  // namespace ptxcpu
