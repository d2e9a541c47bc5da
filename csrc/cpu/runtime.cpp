#include "runtime.hpp"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#include "arithmetic.hpp"
#include "cgroup.hpp"

namespace pyconv::cpu {

namespace {

std::atomic<int> requested_threads{0};  // 0: not set, use the default
// Found out when the library is loaded, not at first use: a child that another thread forks while
// that is under way would wait for its end for ever.
const int threads_at_first = omp_get_max_threads();
const int threads_granted = granted_cpus("");
std::atomic<MathMode> mode_in_use{MathMode::fp32};

// Items [next, end) of a parallel loop, on cache lines of their own.
struct alignas(128) Share {
  std::atomic<int64_t> next;
  int64_t end;
};
constexpr int max_shares = 64;

thread_local bool alone = false;
thread_local KeptWeights* kept_in_use = nullptr;
thread_local int64_t loops_begun = 0;

// Calls work(worker, members) on so many threads, or fewer if OpenMP has no more, in a parallel
// region.
template <class Work>
void run_region(int threads, const Work& work) {
#if defined(__SANITIZE_THREAD__)
  // ThreadSanitizer does not see how GCC's OpenMP makes threads wait for each other.
  std::vector<std::thread> others;
  for (int worker = 1; worker < threads; ++worker) others.emplace_back(work, worker, threads);
  work(0, threads);
  for (std::thread& other : others) other.join();
#else
#pragma omp parallel num_threads(threads)
  work(omp_get_thread_num(), omp_get_num_threads());
#endif
}

// The threads of a region that run one loop after the other: thread 0 leads, the others wait for
// what it begins. A region of OpenMP's for each loop takes four times as long to begin and end.
class Team {
 public:
  using Work = void (*)(const void* context, int worker);

  // On the leader, first of all: how many threads there are.
  void begin(int size) { size_ = size; }
  // On the leader: work(context, worker) on every thread.
  void run(Work work, const void* context) noexcept {
    work_ = work;
    context_ = context;
    busy_.store(size_ - 1, std::memory_order_relaxed);
    turn_.fetch_add(1, std::memory_order_release);
    work(context, 0);
    wait_until([&] { return busy_.load(std::memory_order_acquire) == 0; });
  }
  // On the leader: lets the others go.
  void dismiss() { run(leave, nullptr); }

  // On the others.
  void follow(int worker) {
    bool stays = true;
    for (uint64_t turn = 0; stays; ++turn) {
      wait_until([&] { return turn_.load(std::memory_order_acquire) != turn; });
      stays = work_ != leave;
      work_(context_, worker);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

 private:
  static void leave(const void*, int) {}

  template <class Condition>
  static void wait_until(const Condition& met) {
    constexpr int spins = 10'000;  // a fraction of a millisecond
    for (int i = 0; !met(); ++i) {
      if (i >= spins) {
        std::this_thread::yield();  // whom it waits for may have no core to run on
      } else {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
    }
  }

  alignas(128) std::atomic<uint64_t> turn_{0};  // one line, which the others fetch for every loop
  Work work_ = nullptr;
  const void* context_ = nullptr;
  int size_ = 1;
  alignas(128) std::atomic<int> busy_{0};
};
thread_local Team* team = nullptr;  // that the calling thread leads, while it is not in a loop

// Calls work(worker) on at most so many threads, of the team if there is one.
template <class Work>
void run_threads(int threads, const Work& work) {
  Team* const mine = team;
  if (mine == nullptr) {
    run_region(threads, [&](int worker, int) { work(worker); });
    return;
  }
  team = nullptr;
  mine->run([](const void* context, int worker) { (*static_cast<const Work*>(context))(worker); },
            &work);
  team = mine;
}

// A fork copies the forking thread only. What others had locked stays locked in the child, and what
// they were writing half written, so a fork waits for the calls in which that would matter, and
// lets no other begin. OpenMP's threads are not copied either, but it does not know and would wait
// for them: where they have been used, the child computes on one thread.
struct ForkGate {
  std::mutex mutex;
  std::condition_variable changed;
  int inside = 0;
  bool closed = false;
};
ForkGate* fork_gate = new ForkGate;  // never destroyed: threads may outlive static objects

std::atomic<bool> has_used_openmp{false}, has_lost_openmp{false};

void before_fork() {
  std::unique_lock lock(fork_gate->mutex);
  fork_gate->changed.wait(lock, [] { return !fork_gate->closed; });
  fork_gate->closed = true;
  fork_gate->changed.wait(lock, [] { return fork_gate->inside == 0; });
}

void after_fork_in_parent() {
  const std::lock_guard lock(fork_gate->mutex);
  fork_gate->closed = false;
  fork_gate->changed.notify_all();
}

void after_fork_in_child() {
  fork_gate = new ForkGate;  // threads that are not here may be waiting at the old one
  if (has_used_openmp.load(std::memory_order_relaxed)) {
    has_lost_openmp.store(true, std::memory_order_relaxed);
  }
}

[[maybe_unused]] const int handlers_registered =
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

}  // namespace

NoFork::NoFork() {
  std::unique_lock lock(fork_gate->mutex);
  fork_gate->changed.wait(lock, [] { return !fork_gate->closed; });
  ++fork_gate->inside;
}
NoFork::~NoFork() {
  const std::lock_guard lock(fork_gate->mutex);
  if (--fork_gate->inside == 0) fork_gate->changed.notify_all();
}

int num_threads() {
  if (alone || has_lost_openmp.load(std::memory_order_relaxed)) return 1;
  const int requested = requested_threads.load(std::memory_order_relaxed);
  const int openmp = std::max(1, omp_get_max_threads());
  if (requested > 0) return openmp < threads_at_first ? std::min(requested, openmp) : requested;
  return threads_granted > 0 ? std::min(openmp, threads_granted) : openmp;
}

void set_num_threads(int count) { requested_threads.store(count, std::memory_order_relaxed); }

OneThread::OneThread(bool wanted) : before_(alone) { alone = alone || wanted; }
OneThread::~OneThread() { alone = before_; }

MathMode math_mode() { return mode_in_use.load(std::memory_order_relaxed); }
void set_math_mode(MathMode mode) { mode_in_use.store(mode, std::memory_order_relaxed); }

void run_parallel(int threads, int64_t items, ParallelBody body, void* context) {
  threads = static_cast<int>(std::min<int64_t>(threads, items));
  if (threads <= 1 || has_lost_openmp.load(std::memory_order_relaxed)) {
    for (int64_t item = 0; item < items; ++item) body(context, item, 0);
    return;
  }
  has_used_openmp.store(true, std::memory_order_relaxed);
  ++loops_begun;
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
  const auto work = [&](int worker) {
    if (worker >= threads) return;  // of a larger team
    const uint64_t before = arithmetic();
    set_arithmetic(callers);
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
  };
  run_threads(threads, work);
  if (out_of_memory.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

int64_t parallel_loops() { return loops_begun; }

void run_with_team(void (*work)(void* context), void* context) {
  const int threads = num_threads();
  if (threads <= 1 || team != nullptr) {
    work(context);
    return;
  }
  has_used_openmp.store(true, std::memory_order_relaxed);
  std::exception_ptr failure;  // which must not leave the region
  Team members;
  run_region(threads, [&](int worker, int size) {
    if (worker != 0) {
      members.follow(worker);
      return;
    }
    members.begin(size);
    team = &members;
    try {
      work(context);
    } catch (...) {
      failure = std::current_exception();
    }
    team = nullptr;
    members.dismiss();
  });
  if (failure) std::rethrow_exception(failure);
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
