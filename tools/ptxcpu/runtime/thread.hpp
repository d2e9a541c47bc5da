// The state of a running block: threads (fibers), warps and the worker that schedules them.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fiber.hpp"
#include "launch.hpp"
#include "types.hpp"

namespace ptxcpu {

struct Warp;
struct Worker;

enum class State : u8 { kRunnable, kAtBarrier, kAtWarpCollective, kDone };

/// Computes a warp collective for the lanes in `mask`, from Thread::in to Thread::out.
using Collective = void (*)(Warp&, u32 mask);

/// One cp.async that was not waited for yet.
struct PendingCopy {
  u32 destination;  // offset in shared memory
  u64 source;
  u32 bytes;
  u32 source_bytes;  // the rest is filled with zero
  bool done;         // carried out when it was issued; only the bookkeeping is pending
};

constexpr int kCollectiveInputs = 12;  // mma: 4 + 4 registers of A and B at most, and 4 of C
constexpr int kCollectiveOutputs = 4;

struct Thread {
  // Identity.
  u32 tid[3];
  u32 ntid[3];
  u32 ctaid[3];
  u32 nctaid[3];
  u32 linear;
  u32 lane;
  u32 warp_index;
  Warp* warp;
  Worker* worker;

  // Memory.
  u8* shared;
  u32 shared_bytes;
  u32 dynamic_shared_bytes;
  bool shared_is_watched;  // in stress mode and by the race detector
  const u8* parameters;
  Range* site_cache;  // per global-memory instruction: the buffer it touched last

  // Scheduling.
  StackPointer stack_pointer;
  HostStack host_stack;
  char* stack;
  State state;
  int wait_line;            // PTX line of the instruction it waits at
  const char* wait_reason;  // for deadlock messages

  // Warp collective being waited for.
  u32 in[kCollectiveInputs];
  u32 out[kCollectiveOutputs];
  int collective_kind;
  int collective_site;
  bool collective_aligned;
  Collective collective;

  // Block barrier being waited for.
  u32 barrier_id;
  u32 barrier_expected;  // 0: all threads of the block
  bool barrier_predicate;
  bool barrier_aligned;
  u32 barrier_arrived;
  u32 barrier_true_count;

  // cp.async.
  std::vector<std::vector<PendingCopy>> committed_groups;
  std::vector<PendingCopy> uncommitted_copies;
};

struct Warp {
  Thread* threads[32];
  int size;
  u32 alive;            // lanes that have not exited
  u32 waiting;          // lanes that stand at a warp collective
  u32 member_mask[32];  // of the collective that a waiting lane stands at
  u32 epoch;            // number of collectives so far, for the race detector
};

struct SharedByte;

/// State common to the workers of one launch.
struct Launch {
  const LaunchRequest* request;
  LaunchOptions options;
  std::vector<Range> buffers;  // the request's buffers and the module's variables
  u32 dynamic_offset;
  std::atomic<bool> failed{false};
  std::atomic<u64> next_block{0};
  std::mutex mutex;
  LaunchResult result;

  void report(Fault fault, const std::string& message) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!failed) {
      result.fault = fault;
      result.message = message;
    }
    failed = true;
  }
};

struct Worker {
  Launch* launch;
  StackPointer scheduler;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::unique_ptr<u8[]> shared_storage;
  u8* shared;
  std::vector<Range> site_cache;
  std::vector<SharedByte> shadow;
  bool faulted = false;
  u64 instructions = 0;
  u64 clock_reads = 0;
  u64 random_state;
  u32 barrier_epoch = 0;

  u64 random() {  // xorshift64: fast, and the same sequence everywhere
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
  }
  bool chance_in_1000(u32 chance) { return (random() >> 20) % 1000 < chance; }
};

PTXCPU_INLINE void yield(Thread& t) {
  leave_fiber(t.stack_pointer, t.worker->scheduler, t.host_stack);
}

/// Time must advance at every read, otherwise a kernel that waits on the clock would spin for ever.
PTXCPU_INLINE u64 read_clock(Thread& t) {
  return t.worker->instructions + 64 * ++t.worker->clock_reads;
}

/// Ends the launch with a message that names the kernel, PTX line, block and thread. Never returns.
[[noreturn]] PTXCPU_COLD void fail(Thread& t, Fault fault, int line, const char* format, ...)
    __attribute__((format(printf, 4, 5)));

/// `exit` inside a device function: the thread ends without unwinding to the kernel.
[[noreturn]] void exit_thread(Thread& t);

}  // namespace ptxcpu
