// Runs a grid: each worker takes blocks, and switches among
// the fibers of its block until all are done.
#include <cxxabi.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <numeric>
#include <thread>

#include "memory.hpp"
#include "thread.hpp"
#include "warp.hpp"

namespace ptxcpu {

std::vector<const Module*>& registered_modules() {
  static std::vector<const Module*> modules;
  return modules;
}

void fail(Thread& t, Fault fault, int line, const char* format, ...) {
  char message[800];
  const Launch& launch = *t.worker->launch;
  const int prefix =
      snprintf(message, sizeof message, "%s: PTX line %d, block (%u,%u,%u) thread (%u,%u,%u): ",
               readable_name(launch.request->kernel->name).c_str(), line, t.ctaid[0], t.ctaid[1],
               t.ctaid[2], t.tid[0], t.tid[1], t.tid[2]);
  if (prefix < static_cast<int>(sizeof message)) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message + prefix, sizeof message - prefix, format, arguments);
    va_end(arguments);
  }
  t.worker->launch->report(fault, message);
  t.worker->faulted = true;
  for (;;) yield(t);  // the scheduler sees `faulted` and never comes back
}

void exit_thread(Thread& t) {
  t.state = State::kDone;
  t.warp->alive &= ~(1u << t.lane);
  complete_collectives(*t.warp, t);  // the others may have been waiting only for this thread
  for (;;) yield(t);
}

std::string readable_name(const std::string& mangled) {
  int status = 0;
  char* demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  if (status != 0) return mangled;
  std::string name = demangled;
  free(demangled);
  if (name.rfind("void ", 0) == 0) name.erase(0, 5);
  // Drop the parameter list, which is the last parenthesis and whatever it encloses.
  int depth = 0;
  for (size_t i = name.size(); i-- > 0;) {
    depth += name[i] == ')';
    depth -= name[i] == '(';
    if (depth == 0) return name.substr(0, i);
  }
  return name;
}

u32 dynamic_shared_offset(const Kernel& kernel, u32 dynamic_bytes) {
  if (!dynamic_bytes) return kernel.static_shared_bytes;
  const u32 alignment = std::max(16u, kernel.dynamic_shared_alignment);
  return (kernel.static_shared_bytes + alignment - 1) / alignment * alignment;
}

namespace {

constexpr u64 kSharedAlignment = 1024;
constexpr u32 kBarrierCount = 16;

/// The threads of a block that stand at one of its barriers.
struct Arrivals {
  u32 count;
  u32 true_count;
  u32 expected;  // 0: all threads of the block that have not exited
  bool complete;
};

void fiber_entry(void* argument) {
  Thread& t = *static_cast<Thread*>(argument);
  fiber_started(t.host_stack);
  t.worker->launch->request->kernel->body(t);
  exit_thread(t);
}

class BlockRunner {
 public:
  explicit BlockRunner(Launch& launch)
      : launch_(launch),
        request_(*launch.request),
        thread_count_(request_.block[0] * request_.block[1] * request_.block[2]),
        stacks_(thread_count_) {
    shared_bytes_ = launch.dynamic_offset + request_.dynamic_shared_bytes;
    worker_.launch = &launch;
    worker_.random_state = (launch.options.seed + 1) * 0x9E3779B97F4A7C15ull + 0x1234567;
    worker_.shared_storage.reset(new u8[shared_bytes_ + kSharedAlignment]);
    const u64 storage = reinterpret_cast<u64>(worker_.shared_storage.get());
    const u64 aligned = (storage + kSharedAlignment - 1) & ~(kSharedAlignment - 1);
    worker_.shared = reinterpret_cast<u8*>(aligned);
    worker_.site_cache.assign(request_.module->access_sites + 1, Range{1, 0});
    worker_.threads.resize(thread_count_);
    worker_.warps.resize((thread_count_ + 31) / 32);
    if (launch.options.detect_races) worker_.shadow.resize(shared_bytes_);
    warp_order_.resize(worker_.warps.size());
    lane_order_.resize(32);
    prepare_identities();
  }

  u64 instructions() const { return worker_.instructions; }

  void run_all() {
    const u64 total = u64(request_.grid[0]) * request_.grid[1] * request_.grid[2];
    while (!launch_.failed) {
      const u64 ticket = launch_.next_block++;
      if (ticket >= total) return;
      const u64 block = launch_.options.order == Order::kReverse ? total - 1 - ticket : ticket;
      start_block(block);
      while (run_one_round()) {
      }
      if (!worker_.faulted) check_finished_copies();
    }
  }

 private:
  /// What is the same for every block.
  void prepare_identities() {
    for (u32 i = 0; i < thread_count_; ++i) {
      Thread& t = worker_.threads[i];
      t.worker = &worker_;
      t.shared = worker_.shared;
      t.shared_bytes = shared_bytes_;
      t.dynamic_shared_bytes = request_.dynamic_shared_bytes;
      t.shared_is_watched = launch_.options.stress || launch_.options.detect_races;
      t.parameters = request_.parameters;
      t.site_cache = worker_.site_cache.data();
      t.linear = i;
      t.lane = i % 32;
      t.warp_index = i / 32;
      t.warp = &worker_.warps[i / 32];
      t.tid[0] = i % request_.block[0];
      t.tid[1] = i / request_.block[0] % request_.block[1];
      t.tid[2] = i / request_.block[0] / request_.block[1];
      std::copy_n(request_.block, 3, t.ntid);
      std::copy_n(request_.grid, 3, t.nctaid);
      t.stack = stacks_[i];
      t.warp->threads[t.lane] = &t;
      t.warp->size = static_cast<int>(t.lane) + 1;
    }
  }

  void start_block(u64 block) {
    memset(worker_.shared, launch_.options.poison_shared ? 0xff : 0, shared_bytes_);
    worker_.barrier_epoch++;  // makes the race detector forget the block before
    for (SharedByte& byte : worker_.shadow) byte.copying = SharedByte::kNobody;
    for (Warp& warp : worker_.warps) {
      warp.alive = warp.size == 32 ? kFullMask : (1u << warp.size) - 1;
      warp.waiting = 0;
      warp.epoch = 1;
    }
    for (Thread& t : worker_.threads) {
      t.ctaid[0] = static_cast<u32>(block % request_.grid[0]);
      t.ctaid[1] = static_cast<u32>(block / request_.grid[0] % request_.grid[1]);
      t.ctaid[2] = static_cast<u32>(block / request_.grid[0] / request_.grid[1]);
      t.state = State::kRunnable;
      t.committed_groups.clear();
      t.uncommitted_copies.clear();
      t.stack_pointer = prepare_stack(t.stack, t.linear, fiber_entry, &t);
    }
  }

  void choose_orders() {
    const Order order = launch_.options.order;
    std::iota(warp_order_.begin(), warp_order_.end(), 0u);
    std::iota(lane_order_.begin(), lane_order_.end(), 0u);
    if (order == Order::kReverse) {
      std::reverse(warp_order_.begin(), warp_order_.end());
      std::reverse(lane_order_.begin(), lane_order_.end());
    }
    if (order == Order::kRandom) {
      shuffle_order(warp_order_);
      shuffle_order(lane_order_);
    }
  }

  void shuffle_order(std::vector<u32>& order) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[worker_.random() % i]);
  }

  /// Lets every warp run. Returns false when the block is finished or a fault ended it.
  bool run_one_round() {
    choose_orders();
    bool progressed = false;
    for (u32 index : warp_order_) {
      while (run_lanes(worker_.warps[index])) {
        progressed = true;
        if (worker_.faulted) return false;
        // Interleaving of warps matters in these modes; otherwise a warp runs as far as it can.
        if (launch_.options.order == Order::kRandom || launch_.options.stress) break;
      }
    }
    if (progressed) return true;
    if (all_done()) return false;
    if (release_barriers()) return true;
    if (!worker_.faulted) report_deadlock();
    return false;
  }

  bool run_lanes(Warp& warp) {
    bool progressed = false;
    for (u32 lane : lane_order_) {
      if (lane >= static_cast<u32>(warp.size)) continue;
      Thread& t = *warp.threads[lane];
      if (t.state != State::kRunnable) continue;
      progressed = true;
      enter_fiber(worker_.scheduler, t.stack_pointer, t.stack);
      if (worker_.faulted) break;
    }
    return progressed;
  }

  bool all_done() const {
    return std::all_of(worker_.threads.begin(), worker_.threads.end(),
                       [](const Thread& t) { return t.state == State::kDone; });
  }

  /// Releases every barrier at which all the threads it waits for have arrived.
  bool release_barriers() {
    Arrivals arrivals[kBarrierCount] = {};
    u32 alive = 0;
    for (const Thread& t : worker_.threads) {
      if (t.state == State::kDone) continue;
      alive++;
      if (t.state != State::kAtBarrier || t.barrier_id >= kBarrierCount) continue;
      Arrivals& barrier = arrivals[t.barrier_id];
      barrier.count++;
      barrier.true_count += t.barrier_predicate;
      if (t.barrier_expected) barrier.expected = t.barrier_expected;
    }
    bool released = false;
    for (Arrivals& barrier : arrivals) {
      const u32 expected = barrier.expected ? barrier.expected : alive;
      barrier.complete = barrier.count > 0 && barrier.count >= expected;
      worker_.barrier_epoch += barrier.complete;
      released = released || barrier.complete;
    }
    if (!released || has_divergent_barrier()) return false;
    for (Thread& t : worker_.threads) {
      if (t.state != State::kAtBarrier || t.barrier_id >= kBarrierCount) continue;
      const Arrivals& barrier = arrivals[t.barrier_id];
      if (!barrier.complete) continue;
      t.barrier_arrived = barrier.count;
      t.barrier_true_count = barrier.true_count;
      t.state = State::kRunnable;
    }
    return true;
  }

  /// Reports threads of one warp that stand at different instructions of the same barrier. The
  /// hardware counts warps there, so that such a block may hang or run on too early.
  bool has_divergent_barrier() {
    for (const Warp& warp : worker_.warps) {
      const Thread* first = nullptr;
      for (int lane = 0; lane < warp.size; ++lane) {
        const Thread& t = *warp.threads[lane];
        if (t.state != State::kAtBarrier || !t.barrier_aligned) continue;
        if (!first) first = &t;
        if (t.barrier_id != first->barrier_id || t.wait_line == first->wait_line) continue;
        launch_.report(Fault::kCollectiveMismatch,
                       readable_name(request_.kernel->name) + ": divergent barrier: thread " +
                           std::to_string(first->linear) + " waits at PTX line " +
                           std::to_string(first->wait_line) + ", thread " +
                           std::to_string(t.linear) + " of the same warp at PTX line " +
                           std::to_string(t.wait_line));
        worker_.faulted = true;
        return true;
      }
    }
    return false;
  }

  void report_deadlock() {
    constexpr int kThreadsNamed = 6;
    const u32* ctaid = worker_.threads[0].ctaid;
    std::string message = readable_name(request_.kernel->name) + ": deadlock in block (" +
                          std::to_string(ctaid[0]) + "," + std::to_string(ctaid[1]) + "," +
                          std::to_string(ctaid[2]) + "):";
    int named = 0;
    for (const Thread& t : worker_.threads) {
      if (t.state == State::kDone || named++ >= kThreadsNamed) continue;
      message += " thread " + std::to_string(t.linear) + " waits for " + t.wait_reason +
                 " at PTX line " + std::to_string(t.wait_line) + ";";
    }
    launch_.report(Fault::kDeadlock, message);
  }

  void check_finished_copies() {
    for (const Thread& t : worker_.threads) {
      for (const auto& group : t.committed_groups) {
        if (group.empty()) continue;
        launch_.report(Fault::kUnfinishedCopy,
                       readable_name(request_.kernel->name) +
                           ": thread exited with cp.async groups not waited for (PTX line " +
                           std::to_string(t.wait_line) + ")");
        return;
      }
    }
  }

  Launch& launch_;
  const LaunchRequest& request_;
  Worker worker_;
  u32 thread_count_;
  Stacks stacks_;
  u32 shared_bytes_;
  std::vector<u32> warp_order_;
  std::vector<u32> lane_order_;
};

}  // namespace

LaunchResult run_launch(const LaunchRequest& request) {
  Launch launch;
  launch.request = &request;
  launch.options = request.options;
  launch.buffers = request.buffers;
  launch.dynamic_offset = dynamic_shared_offset(*request.kernel, request.dynamic_shared_bytes);
  for (u32 i = 0; i < request.module->variable_count; ++i) {
    const Variable& variable = request.module->variables[i];
    const u64 begin = reinterpret_cast<u64>(variable.address);
    launch.buffers.push_back({begin, begin + variable.bytes});
  }
  std::atomic<u64> instructions{0};
  const auto work = [&] {
    BlockRunner runner(launch);
    runner.run_all();
    instructions += runner.instructions();
  };
  const u64 blocks = u64(request.grid[0]) * request.grid[1] * request.grid[2];
  const u64 worker_count = std::min<u64>(request.options.workers, blocks);
  if (worker_count <= 1) {
    work();
  } else {
    std::vector<std::thread> workers;
    for (u64 i = 0; i < worker_count; ++i) workers.emplace_back(work);
    for (std::thread& worker : workers) worker.join();
  }
  launch.result.instructions = instructions;
  return launch.result;
}

}  // namespace ptxcpu
