// Stackful fibers: one per CUDA thread of the block being run. A
// switch saves the callee-saved registers and swaps stack pointers;
// nothing else, so that a warp collective costs tens of nanoseconds.
#pragma once
#include <cstddef>

#include "types.hpp"

#if !defined(__x86_64__)
#error \
    "ptxcpu switches fibers with x86-64 assembly; port switch_stack in fiber.cpp for other machines"
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define PTXCPU_ASAN 1
#else
#define PTXCPU_ASAN 0
#endif

namespace ptxcpu {

// AddressSanitizer puts red zones around every local, so
// frames of translated kernels grow several times.
constexpr size_t kStackBytes = PTXCPU_ASAN ? 1024 * 1024 : 256 * 1024;

struct StackPointer {
  void* top = nullptr;
};

extern "C" void ptxcpu_switch_stack(void** save, void* load);

/// Lays out a fresh stack so that the first switch to it calls entry(argument). `entry` must not
/// return. `index` numbers the fibers of a block.
StackPointer prepare_stack(char* stack, u32 index, void (*entry)(void*), void* argument);

/// The stacks of one block. The memory comes from an earlier block if possible: mapping it and
/// touching it for the first time costs more than running a small block.
class Stacks {
 public:
  explicit Stacks(size_t count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  char* operator[](size_t index) const { return memory_ + kStackBytes * index; }

 private:
  char* memory_;
  size_t count_;
};

// AddressSanitizer has to be told about every change of stack;
// without it these functions only switch.

/// Scheduler to fiber. Returns when the fiber switches back.
PTXCPU_INLINE void enter_fiber(StackPointer& scheduler, StackPointer& fiber, const char* stack) {
#if PTXCPU_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack, kStackBytes);
  ptxcpu_switch_stack(&scheduler.top, fiber.top);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  (void)stack;
  ptxcpu_switch_stack(&scheduler.top, fiber.top);
#endif
}

/// The scheduler's own stack as AddressSanitizer reports it to the fiber it has just entered.
struct HostStack {
  const void* bottom = nullptr;
  size_t bytes = 0;
};

PTXCPU_INLINE void fiber_started(HostStack& host) {
#if PTXCPU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &host.bottom, &host.bytes);
#else
  (void)host;
#endif
}

/// Fiber to scheduler. Returns when the scheduler enters this fiber again.
PTXCPU_INLINE void leave_fiber(StackPointer& fiber, StackPointer& scheduler, HostStack& host) {
#if PTXCPU_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, host.bottom, host.bytes);
  ptxcpu_switch_stack(&fiber.top, scheduler.top);
  __sanitizer_finish_switch_fiber(fake_stack, &host.bottom, &host.bytes);
#else
  (void)host;
  ptxcpu_switch_stack(&fiber.top, scheduler.top);
#endif
}

}  // namespace ptxcpu
