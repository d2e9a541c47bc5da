// What the CPU kernels need from the machine: threads and scratch memory. Compiled once, with
// baseline flags; the kernels of every instruction set call into it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace pyconv::cpu {

// Threads that the calling thread's next parallel loop may use. The default is OpenMP's
// (OMP_NUM_THREADS, the affinity mask), capped by the cgroup's CPU quota. If that has been lowered
// meanwhile by omp_set_num_threads, as threadpoolctl does, no more than that. 1 in a process that
// was forked after a loop had run on several threads, whatever was set.
int num_threads();
void set_num_threads(int count);

// As long as it lives, other threads that fork wait: for calls with a lock, or with memory that
// other threads use, either of which a child would find as it is at that moment, for good. Not to
// be nested.
class NoFork {
 public:
  NoFork();
  ~NoFork();
  NoFork(const NoFork&) = delete;
  NoFork& operator=(const NoFork&) = delete;
};

// As long as it lives, the calling thread's parallel loops run on this thread alone, if wanted.
class OneThread {
 public:
  explicit OneThread(bool wanted = true);
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  bool before_;
};

// How convolutions multiply: by whatever is fastest, always directly, or by Winograd's algorithm
// wherever that can be, with tiles of 4x4 or 6x6 outputs.
enum class MathMode : int { fp32, direct, winograd4, winograd6 };
MathMode math_mode();
void set_math_mode(MathMode mode);

// Whether kernels multiply numbers of bfloat16 in pairs (tiles.hpp): where the processor has an
// instruction for it that is faster than two multiply-adds, which is the default; never; or
// wherever they can. `by_instruction`: whether the caller needs that instruction.
enum class PairMode : int { fast, never, always };
PairMode pair_mode();
void set_pair_mode(PairMode mode);
bool multiplies_pairs(bool by_instruction);

// Calls body(context, item, worker) once for each item in [0, items), on at most `threads` threads;
// 0 <= worker < threads. Who gets which depends on the moment, so results must not depend on it.
// The count is the caller's, who may have sized memory by it: num_threads() can change at any
// moment.
using ParallelBody = void (*)(void* context, int64_t item, int worker);
void run_parallel(int threads, int64_t items, ParallelBody body, void* context);
// The same for body(item, worker). Static, so that what is compiled for one instruction set is not
// used by another.
template <class Body>
static inline void parallel_for(int threads, int64_t items, const Body& body) {
  run_parallel(
      threads, items,
      [](void* context, int64_t item, int worker) {
        (*static_cast<const Body*>(context))(item, worker);
      },
      const_cast<Body*>(&body));
}

// Calls work(), whose parallel loops, all on the calling thread, then begin and end in a quarter of
// the time: the other threads stay at hand. Worth it from two loops on.
void run_with_team(void (*work)(void* context), void* context);
template <class Work>
static inline void with_team(const Work& work) {
  run_with_team([](void* context) { (*static_cast<const Work*>(context))(); },
                const_cast<Work*>(&work));
}
// How many loops on several threads the calling thread has begun.
int64_t parallel_loops();

// Scratch memory of the calling thread, 64-byte aligned, valid until that thread's next call with
// the same use: a kernel's own; what an operation that is composed of kernels holds meanwhile; or
// that of a worker in a parallel loop, which is better than a part of the kernel's: from call to
// call it stays in the cache of the worker's core, not another's. Between items of a loop its
// contents stay as they are, if all ask for as much.
// It grows to the largest request and is kept, so that a training loop allocates nothing. Throws
// std::bad_alloc.
enum class ScratchUse { kernel, padded, composed, worker, sequence };
void* scratch(size_t bytes, ScratchUse use = ScratchUse::kernel);

// Memory that grows to the largest request, 64-byte aligned.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* at_least(size_t bytes);  // throws std::bad_alloc

 private:
  void release();
  void* data_ = nullptr;
  size_t size_ = 0;
};

// The weights of one layer as its kernels want them, packed or transformed: for a caller who runs a
// kernel again and again with the same ones (sequence.hpp). Every algorithm has a layout of its
// own.
class KeptWeights {
 public:
  enum Layout { packed, packed_pairs, winograd4, winograd6, sparse };

  // Images for which kernels choose their algorithm, whatever part of them a call is for: so all
  // parts of a batch are computed alike.
  int64_t images = 1;

  // The weights in this layout. The first call makes them, by make(context, to).
  using Make = void (*)(void* context, float* to);
  const float* get(Layout layout, size_t bytes, Make make, void* context);
  // Forgets them. No kernel may be running.
  void discard();

  // As long as it lives, `kept` is what kernels that this thread calls find.
  class Use {
   public:
    explicit Use(KeptWeights* kept);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
  };

 private:
  static constexpr int layouts = 5;
  std::mutex making_;
  Buffer memory_[layouts];
  std::atomic<const float*> ready_[layouts] = {};
};
// What the caller of the running kernel keeps; usually null.
KeptWeights* kept_weights();
// The calling thread's, empty: for an operation that calls a kernel many times.
KeptWeights& kept_for_one_call();

}  // namespace pyconv::cpu
