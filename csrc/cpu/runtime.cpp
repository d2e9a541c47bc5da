#include "runtime.hpp"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <new>
#include <string>

#include "arithmetic.hpp"

namespace pyconv::cpu {

namespace {

// CPUs' worth of time that the cgroup (version 2, then 1) grants, or 0 where it sets no limit.
// OpenMP looks at the affinity mask only; in a container the quota is what counts.
int cgroup_cpus() {
  double quota = 0, period = 0;
  if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2) {
    std::string word;
    if (!(v2 >> word >> period) || word == "max") return 0;
    quota = std::atof(word.c_str());
  } else {
    std::ifstream q("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream p("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (!(q >> quota) || !(p >> period)) return 0;
  }
  if (quota <= 0 || period <= 0) return 0;
  return std::max(1, static_cast<int>(quota / period + 0.5));
}

int default_threads() {
  const int threads = std::max(1, omp_get_max_threads());
  const int granted = cgroup_cpus();
  return granted > 0 ? std::min(threads, granted) : threads;
}

std::atomic<int> requested_threads{0};  // 0: not set, use the default
std::atomic<MathMode> mode_in_use{MathMode::fp32};

// Items [next, end) of a parallel loop, on cache lines of their own.
struct alignas(128) Share {
  std::atomic<int64_t> next;
  int64_t end;
};
constexpr int max_shares = 64;

thread_local bool alone = false;
thread_local KeptWeights* kept_in_use = nullptr;

}  // namespace

int num_threads() {
  if (alone) return 1;
  const int requested = requested_threads.load(std::memory_order_relaxed);
  if (requested > 0) return requested;
  static const int threads = default_threads();
  return threads;
}

void set_num_threads(int count) { requested_threads.store(count, std::memory_order_relaxed); }

OneThread::OneThread(bool wanted) : before_(alone) { alone = alone || wanted; }
OneThread::~OneThread() { alone = before_; }

MathMode math_mode() { return mode_in_use.load(std::memory_order_relaxed); }
void set_math_mode(MathMode mode) { mode_in_use.store(mode, std::memory_order_relaxed); }

void run_parallel(int threads, int64_t items, ParallelBody body, void* context) {
  threads = static_cast<int>(std::min<int64_t>(threads, items));
  if (threads <= 1) {
    for (int64_t item = 0; item < items; ++item) body(context, item, 0);
    return;
  }
  // Every thread has a contiguous share of the items, and helps with the others' when it is done
  // with its own. So the same part of an array is mostly met by the same thread, call after call,
  // and still lies in that core's cache.
  Share shares[max_shares];
  const int count = std::min(threads, max_shares);
  for (int i = 0; i < count; ++i) {
    shares[i].next.store(items * i / count, std::memory_order_relaxed);
    shares[i].end = items * (i + 1) / count;
  }
  std::atomic<bool> out_of_memory{false};
  const uint64_t callers = arithmetic();
#pragma omp parallel num_threads(threads)
  {
    const uint64_t before = arithmetic();
    set_arithmetic(callers);
    const int worker = omp_get_thread_num();
    try {
      for (int i = 0; i < count; ++i) {
        Share& share = shares[(worker + i) % count];
        for (;;) {
          const int64_t item = share.next.fetch_add(1, std::memory_order_relaxed);
          if (item >= share.end) break;
          body(context, item, worker);
        }
      }
    } catch (const std::bad_alloc&) {
      out_of_memory.store(true, std::memory_order_relaxed);
    }
    set_arithmetic(before);
  }
  if (out_of_memory.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

void* scratch(size_t bytes, ScratchUse use) {
  thread_local Buffer buffers[5];
  return buffers[static_cast<int>(use)].at_least(std::max<size_t>(bytes, 1));
}

Buffer::~Buffer() { release(); }

void* Buffer::at_least(size_t bytes) {
  if (bytes > size_) {
    release();
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    if (rounded < bytes) throw std::bad_alloc();
    data_ = std::aligned_alloc(64, rounded);
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = rounded;
  }
  return data_;
}

void Buffer::release() {
  std::free(data_);
  data_ = nullptr;
  size_ = 0;
}

const float* KeptWeights::get(Layout layout, size_t bytes, Make make, void* context) {
  const float* ready = ready_[layout].load(std::memory_order_acquire);
  if (ready != nullptr) return ready;
  const std::lock_guard<std::mutex> lock(making_);
  ready = ready_[layout].load(std::memory_order_relaxed);
  if (ready != nullptr) return ready;
  float* const memory = static_cast<float*>(memory_[layout].at_least(std::max<size_t>(bytes, 1)));
  make(context, memory);
  ready_[layout].store(memory, std::memory_order_release);
  return memory;
}

void KeptWeights::discard() {
  for (std::atomic<const float*>& ready : ready_) ready.store(nullptr, std::memory_order_relaxed);
}

KeptWeights::Use::Use(KeptWeights* kept) { kept_in_use = kept; }
KeptWeights::Use::~Use() { kept_in_use = nullptr; }

KeptWeights* kept_weights() { return kept_in_use; }

KeptWeights& kept_for_one_call() {
  thread_local KeptWeights kept;
  kept.discard();
  return kept;
}

}  // namespace pyconv::cpu
