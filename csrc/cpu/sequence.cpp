#include "sequence.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "dispatch.hpp"

namespace pyconv::cpu {

namespace {

thread_local Sequence* being_recorded = nullptr;

// Activations that a few samples should not exceed on their way through a step, to stay in a core's
// second-level cache beside the weights.
constexpr int64_t stage_bytes = 768 << 10, most_samples = 64;
// Kernels are faster on more samples at a time. Yet a step joins the stage of the one before it,
// unless it could take more than so many times the samples.
constexpr int64_t join_ratio = 3;

// ---------------------------------------------------------------------------------------------
// The operations of the recorder: they append themselves.

using Run = decltype(Sequence::Step::run);

// A shape for so many times the samples.
template <class Shape>
Shape times(int64_t n, Shape shape) {
  shape.n *= n;
  return shape;
}
ConvPoolShape times(int64_t n, ConvPoolShape shape) {
  shape.conv.n *= n;
  return shape;
}

// From images of a shape [n, h, w, c] to [n, oh, ow, channels].
template <class Shape>
void append_images(const Shape& s, int64_t channels, const float* x, const float* y, Run run) {
  Sequence::append(
      {.in = s.n * s.h * s.w * s.c, .out = s.n * s.oh * s.ow * channels, .run = std::move(run)}, x,
      y);
}
// To as many values.
void append_values(int64_t size, const float* x, const float* y, Run run) {
  Sequence::append({.in = size, .out = size, .run = std::move(run)}, x, y);
}

void record_conv2d(const Conv2dShape& s, Activation activation, const float* x, const float* w,
                   const float* b, float* y) {
  append_images(s, s.oc, x, y,
                [=](const Operations& operations, int64_t n, const float* from, float* to) {
                  operations.conv2d(times(n, s), activation, from, w, b, to);
                });
}

void record_conv2d_pool(const ConvPoolShape& p, const Dropout& dropout, const float* x,
                        const float* w, const float* b, float* y, uint8_t*) {
  if (dropout.threshold != 0) throw std::logic_error("a sequence is for inference: no dropout");
  Sequence::append({.in = p.conv.n * p.conv.h * p.conv.w * p.conv.c,
                    .out = p.conv.n * p.ph * p.pw * p.conv.oc,
                    .run =
                        [=](const Operations& operations, int64_t n, const float* from, float* to) {
                          operations.conv2d_pool(times(n, p), dropout, from, w, b, to, nullptr);
                        }},
                   x, y);
}

void record_dense(const DenseShape& s, Activation activation, const float* x, const float* w,
                  const float* b, float* y) {
  Sequence::append(
      {.in = s.n * s.in,
       .out = s.n * s.out,
       .run = [=](const Operations& operations, int64_t n, const float* from,
                  float* to) { operations.dense(times(n, s), activation, from, w, b, to); }},
      x, y);
}

void record_max_pool2d(const Pool2dShape& s, const float* x, float* y, void*) {
  append_images(s, s.c, x, y,
                [=](const Operations& operations, int64_t n, const float* from, float* to) {
                  operations.max_pool2d(times(n, s), from, to, nullptr);
                });
}

void record_avg_pool2d(const Pool2dShape& s, const float* x, float* y) {
  append_images(s, s.c, x, y,
                [=](const Operations& operations, int64_t n, const float* from, float* to) {
                  operations.avg_pool2d(times(n, s), from, to);
                });
}

void record_pad2d(const Pad2dShape& s, const float* x, float* y) {
  append_images(s, s.c, x, y,
                [=](const Operations& operations, int64_t n, const float* from, float* to) {
                  operations.pad2d(times(n, s), from, to);
                });
}

void record_relu(int64_t size, const float* x, float* y) {
  append_values(size, x, y,
                [=](const Operations& operations, int64_t n, const float* from, float* to) {
                  operations.relu(n * size, from, to);
                });
}

void record_activate(int64_t size, Pointwise function, float slope, const float* x, float* y) {
  append_values(size, x, y,
                [=](const Operations& operations, int64_t n, const float* from, float* to) {
                  operations.activate(n * size, function, slope, from, to);
                });
}

void record_round_bfloat16(int64_t size, const float* x, float* y) {
  append_values(size, x, y,
                [=](const Operations& operations, int64_t n, const float* from, float* to) {
                  operations.round_bfloat16(n * size, from, to);
                });
}

void record_batch_norm(int64_t rows, int64_t c, const float* x, const float* gamma,
                       const float* beta, const float* mean, const float* variance, double epsilon,
                       float* y) {
  append_values(
      rows * c, x, y, [=](const Operations& operations, int64_t n, const float* from, float* to) {
        operations.batch_norm(n * rows, c, from, gamma, beta, mean, variance, epsilon, to);
      });
}

void record_softmax(int64_t n, int64_t k, const float* x, float* y) {
  append_values(n * k, x, y,
                [=](const Operations& operations, int64_t samples, const float* from, float* to) {
                  operations.softmax(samples * n, k, from, to);
                });
}

// For every other operation of the table.
template <class Result, class... Arguments>
void refuse(Result (*&operation)(Arguments...)) {
  operation = [](Arguments...) -> Result {
    throw std::logic_error("a sequence is for inference: this kernel cannot be part of it");
  };
}

}  // namespace

const Operations& Sequence::recorder() {
  static const Operations table = [] {
    Operations t{};
    t.isa = "none";
    refuse(t.conv2d_backward_data);
    refuse(t.conv2d_backward_weights);
    refuse(t.dense_backward_data);
    refuse(t.dense_backward_weights);
    refuse(t.max_pool2d_backward);
    refuse(t.avg_pool2d_backward);
    refuse(t.relu_backward);
    refuse(t.activate_backward);
    refuse(t.dropout);
    refuse(t.batch_norm_training);
    refuse(t.batch_norm_backward);
    refuse(t.softmax_backward);
    refuse(t.softmax_cross_entropy);
    refuse(t.sgd_step);
    refuse(t.rmsprop_step);
    refuse(t.adam_step);
    refuse(t.conv2d_pool_backward_data);
    refuse(t.conv2d_pool_backward_weights);
    refuse(t.conv2d_pool_backward_through);
    refuse(t.peak_flops);
    t.conv2d = record_conv2d;
    t.conv2d_pool = record_conv2d_pool;
    t.dense = record_dense;
    t.max_pool2d = record_max_pool2d;
    t.avg_pool2d = record_avg_pool2d;
    t.pad2d = record_pad2d;
    t.relu = record_relu;
    t.activate = record_activate;
    t.round_bfloat16 = record_round_bfloat16;
    t.batch_norm = record_batch_norm;
    t.softmax = record_softmax;
    return t;
  }();
  return table;
}

Sequence::~Sequence() {
  if (being_recorded == this) being_recorded = nullptr;
}

bool Sequence::recording() { return being_recorded != nullptr; }

void Sequence::begin() {
  if (being_recorded != nullptr) {
    throw std::logic_error("a sequence is already being recorded by this thread");
  }
  const std::lock_guard<std::mutex> lock(running_);
  steps_.clear();
  stages_.clear();
  last_result_ = nullptr;
  being_recorded = this;
}

void Sequence::end() {
  if (being_recorded != this) throw std::logic_error("this sequence is not being recorded");
  being_recorded = nullptr;
  plan_stages();
}

void Sequence::append(Step step, const float* x, const float* y) {
  Sequence& sequence = *being_recorded;
  if (!sequence.steps_.empty() &&
      (x != sequence.last_result_ || step.in != sequence.steps_.back().out)) {
    throw std::logic_error("a sequence's kernels work each on the result of the one before it");
  }
  sequence.last_result_ = y;
  sequence.steps_.push_back(std::move(step));
}

void Sequence::plan_stages() {
  for (size_t i = 0; i < steps_.size(); ++i) {
    const int64_t bytes = (steps_[i].in + steps_[i].out) * static_cast<int64_t>(sizeof(float));
    const int64_t samples =
        std::clamp<int64_t>(stage_bytes / std::max<int64_t>(bytes, 1), 1, most_samples);
    if (!stages_.empty() && samples <= join_ratio * stages_.back().samples) {
      stages_.back().end = i + 1;
      stages_.back().samples = std::min(stages_.back().samples, samples);
    } else {
      stages_.push_back({i, i + 1, samples});
    }
  }
}

void Sequence::run(int64_t n, const float* x, float* y) {
  if (n == 0) return;
  const NoFork no_fork;
  const std::lock_guard<std::mutex> lock(running_);
  const Operations& operations = cpu::operations();
  if (weights_for_ != &operations) {
    for (Step& step : steps_) step.kept->discard();
    weights_for_ = &operations;
  }
  const auto run_stages = [&] {
    const float* from = x;
    for (size_t i = 0; i < stages_.size(); ++i) {
      const Stage& stage = stages_[i];
      float* to = y;
      if (i + 1 < stages_.size()) {
        const auto size = static_cast<size_t>(n * steps_[stage.end - 1].out);
        to = static_cast<float*>(between_[i % 2].at_least(size * sizeof(float)));
      }
      run_stage(operations, stage, n, from, to);
      from = to;
    }
  };
  const int64_t before = parallel_loops();
  if (loops_ > 1) {
    with_team(run_stages);
  } else {
    run_stages();
  }
  loops_ = parallel_loops() - before;
}

void Sequence::run_stage(const Operations& operations, const Stage& stage, int64_t n,
                         const float* x, float* y) {
  // Algorithms are chosen for as many samples as the batch alone tells.
  const int64_t samples = n < 2 * stage.samples ? n : stage.samples;
  int64_t between = 0;
  for (size_t i = stage.begin; i < stage.end; ++i) {
    if (i + 1 < stage.end) between = std::max(between, (steps_[i].out + 15) / 16 * 16);
    steps_[i].kept->images = samples;
  }
  const auto run_part = [&](int64_t first, int64_t count) {
    const int64_t size = count * between;
    float* const memory = static_cast<float*>(
        scratch(static_cast<size_t>(2 * size) * sizeof(float), ScratchUse::sequence));
    const float* from = x + first * steps_[stage.begin].in;
    for (size_t i = stage.begin; i < stage.end; ++i) {
      const Step& step = steps_[i];
      float* const to = i + 1 == stage.end
                            ? y + first * step.out
                            : memory + static_cast<int64_t>(i - stage.begin) % 2 * size;
      const KeptWeights::Use use(step.kept.get());
      step.run(operations, count, from, to);
      from = to;
    }
  };

  const int threads = num_threads();
  int64_t parts = (n + samples - 1) / samples;
  if (parts < threads) {
    run_part(0, n);
    return;
  }
  parts = std::min((parts + threads - 1) / threads * threads, n);
  parallel_for(threads, parts, [&](int64_t part, int) {
    const OneThread alone;
    const int64_t first = n * part / parts;
    run_part(first, n * (part + 1) / parts - first);
  });
}

}  // namespace pyconv::cpu
