#include "fiber.hpp"

#include <sys/mman.h>

#include <mutex>
#include <new>
#include <vector>

// Both routines are hidden, so that several extensions with their own copy can live in one process.
asm(R"(
.text
.globl ptxcpu_switch_stack
.hidden ptxcpu_switch_stack
.type ptxcpu_switch_stack, @function
ptxcpu_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size ptxcpu_switch_stack, . - ptxcpu_switch_stack

.globl ptxcpu_first_entry
.hidden ptxcpu_first_entry
.type ptxcpu_first_entry, @function
ptxcpu_first_entry:
    movq %r12, %rdi
    callq *%r13
    ud2
.size ptxcpu_first_entry, . - ptxcpu_first_entry
)");

extern "C" void ptxcpu_first_entry();

namespace ptxcpu {

constexpr size_t kCacheLine = 64;

StackPointer prepare_stack(char* stack, u32 index, void (*entry)(void*), void* argument) {
  // Stacks are a power of two apart. Without the stagger all
  // fibers would fight for the same cache sets.
  const size_t stagger = index % 128 * (7 * kCacheLine);
  void** top = reinterpret_cast<void**>(stack + kStackBytes - kCacheLine - stagger);
  *--top = nullptr;  // keeps the stack 16-byte aligned at the call in ptxcpu_first_entry
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(ptxcpu_first_entry);
  *--top = nullptr;                         // rbp
  *--top = nullptr;                         // rbx
  *--top = argument;                        // r12
  *--top = reinterpret_cast<void*>(entry);  // r13
  *--top = nullptr;                         // r14
  *--top = nullptr;                         // r15
  return {top};
}

namespace {

struct StackArea {
  char* memory;
  size_t count;
};

std::mutex idle_areas_mutex;
std::vector<StackArea> idle_areas;  // never unmapped; as many as there were workers at one time

}  // namespace

Stacks::Stacks(size_t count) : memory_(nullptr), count_(0) {
  {
    std::lock_guard<std::mutex> lock(idle_areas_mutex);
    if (!idle_areas.empty()) {
      memory_ = idle_areas.back().memory;
      count_ = idle_areas.back().count;
      idle_areas.pop_back();
    }
  }
  if (count > count_) {
    if (memory_) munmap(memory_, kStackBytes * count_);
    // Nothing is reserved: a fiber that uses one page costs one page.
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, kStackBytes * count, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    count_ = count;
  }
#if PTXCPU_ASAN
  // A fiber that faulted never unwound, so its locals are still marked as poisoned.
  __asan_unpoison_memory_region(memory_, kStackBytes * count);
#endif
}

Stacks::~Stacks() {
  std::lock_guard<std::mutex> lock(idle_areas_mutex);
  idle_areas.push_back({memory_, count_});
}

}  // namespace ptxcpu
