// A network's forward pass as one call.
//
// Called kernel by kernel, the whole batch goes through a layer before the next one begins, and
// what lies between two layers of many images does not fit into a cache. A sequence knows all
// layers, so it takes a few images at a time through several of them, on one thread, with
// everything between them in that core's cache; and a small batch through all of them, on all
// threads, without going back to Python. The weights stay packed or transformed as the kernels want
// them from one call to the next.
//
// Results do not depend on the number of threads.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "../ops.hpp"
#include "runtime.hpp"

namespace pyconv::cpu {

class Sequence {
 public:
  Sequence() = default;
  ~Sequence();
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  // Between begin and end, the kernels that this thread calls through recorder() are not run but
  // make up the sequence: for one sample, each on what the one before it writes. Throws
  // std::logic_error for others, and where another sequence is being recorded.
  void begin();
  void end();
  static bool recording();
  static const Operations& recorder();

  // x [n, in] -> y [n, out], with the weights that were recorded, which must still be there and the
  // same: if they change, record again.
  void run(int64_t n, const float* x, float* y);

  size_t size() const { return steps_.size(); }
  int64_t in() const { return steps_.empty() ? 0 : steps_.front().in; }
  int64_t out() const { return steps_.empty() ? 0 : steps_.back().out; }

  struct Step {
    int64_t in, out;  // floats of a sample
    // For n samples, from x to y.
    std::function<void(const Operations&, int64_t n, const float* x, float* y)> run;
    std::unique_ptr<KeptWeights> kept = std::make_unique<KeptWeights>();
  };
  // For the recorder.
  static void append(Step step, const float* x, const float* y);

 private:
  // Steps [begin, end) that a few samples go through together.
  struct Stage {
    size_t begin, end;
    int64_t samples;
  };
  void plan_stages();
  void run_stage(const Operations& operations, const Stage& stage, int64_t n, const float* x,
                 float* y);

  std::vector<Step> steps_;
  std::vector<Stage> stages_;
  const float* last_result_ = nullptr;  // while recording
  std::mutex running_;
  const Operations* weights_for_ = nullptr;  // the instruction set that the kept weights are for
  Buffer between_[2];                        // what stages hand on, in turn
  int64_t loops_ = 0;                        // on several threads, in the last run
};

}  // namespace pyconv::cpu
