// What the translator emits for a module (tables of kernels and variables) and what a launch needs.
#pragma once
#include <string>
#include <vector>

#include "types.hpp"

namespace ptxcpu {

struct Thread;

struct Parameter {
  u32 offset;
  u32 bytes;
};

struct Kernel {
  const char* name;
  void (*body)(Thread&);
  u32 static_shared_bytes;
  u32 dynamic_shared_alignment;
  u32 max_threads;  // .maxntid, or 1024
  u32 parameter_bytes;
  const Parameter* parameters;
  u32 parameter_count;
};

/// A `.global` or `.const` variable; its storage is an array in the translated file.
struct Variable {
  const char* name;
  u8* address;
  u64 bytes;
};

/// One translated PTX file.
struct Module {
  const Kernel* kernels;
  u32 kernel_count;
  const Variable* variables;
  u32 variable_count;
  u32 access_sites;  // number of global-memory instructions, each with its own bounds cache
};

/// Every translated file linked into this library registers itself before main().
std::vector<const Module*>& registered_modules();

struct Registration {
  explicit Registration(const Module& module) { registered_modules().push_back(&module); }
};

enum class Order { kForward = 0, kReverse = 1, kRandom = 2 };

struct LaunchOptions {
  Order order = Order::kForward;
  u64 seed = 0;
  u32 stress = 0;  // chance in 1000 that a thread yields at a shared-memory access
  bool detect_races = false;
  bool poison_shared = true;  // fill shared memory with NaN before each block, otherwise with zero
  bool allow_unregistered =
      false;        // allow accesses outside the registered buffers, if they are mapped
  u32 workers = 1;  // operating-system threads; each runs whole blocks
};

enum class Fault {
  kNone,
  kIllegalAddress,
  kMisalignedAddress,
  kRace,
  kDeadlock,
  kCollectiveMismatch,
  kAssert,
  kTrap,
  kUnfinishedCopy,
};

struct Range {
  u64 begin;
  u64 end;

  bool contains(u64 address, u64 bytes) const { return address >= begin && address + bytes <= end; }
};

struct LaunchRequest {
  const Module* module;
  const Kernel* kernel;
  u32 grid[3];
  u32 block[3];
  u32 dynamic_shared_bytes;
  const u8* parameters;
  std::vector<Range> buffers;  // global memory the kernel may touch
  LaunchOptions options;
};

struct LaunchResult {
  Fault fault = Fault::kNone;
  std::string message;
  u64 instructions = 0;  // counted only in code translated with --count
};

/// Runs every block of the grid to completion or to the first fault.
LaunchResult run_launch(const LaunchRequest& request);

/// A kernel's name as in the source, with template arguments and without parameters.
std::string readable_name(const std::string& mangled);

/// Bytes of shared memory before the dynamic part begins.
u32 dynamic_shared_offset(const Kernel& kernel, u32 dynamic_bytes);

}  // namespace ptxcpu
