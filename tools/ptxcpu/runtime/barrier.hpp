// Block barriers: bar.sync and bar.red. The scheduler releases
// them when no other thread of the block can run.
#pragma once
#include "thread.hpp"

namespace ptxcpu {

/// Waits at barrier `id` for `expected` threads (0: all threads of the block that have not exited).
/// The threads of a warp must arrive at an aligned barrier at the same PTX instruction.
inline void wait_at_barrier(Thread& t, u32 id, u32 expected, bool predicate, bool aligned,
                            int line) {
  t.barrier_id = id;
  t.barrier_expected = expected;
  t.barrier_predicate = predicate;
  t.barrier_aligned = aligned;
  t.wait_line = line;
  t.wait_reason = "bar.sync";
  t.state = State::kAtBarrier;
  yield(t);
}

}  // namespace ptxcpu
