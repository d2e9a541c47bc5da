// Warp collectives: every participating lane leaves its operands in Thread::in and waits; the last
// one to arrive computes the result for all of them.
#pragma once
#include <algorithm>

#include "thread.hpp"

namespace ptxcpu {

/// Values of Thread::collective_kind. Lanes that meet must be at instructions of the same kind.
enum CollectiveKind {
  kSyncWarp = 1,
  kShuffleUp,
  kShuffleDown,
  kShuffleButterfly,
  kShuffleIndex,
  kVoteAll,
  kVoteAny,
  kVoteUniform,
  kVoteBallot,
  kMatchAny,
  kReduce = 20,  // plus the ReduceOperation
  kMma = 40,
  kLdmatrix = 60,
};

enum ReduceOperation { kReduceAdd, kReduceMin, kReduceMax, kReduceAnd, kReduceOr, kReduceXor };

constexpr u32 kFullMask = 0xffffffffu;

/// Completes every collective of the warp whose living members have all arrived.
void complete_collectives(Warp& warp, Thread& by);

/// Waits for the other lanes of `mask`. An aligned instruction
/// needs all lanes at the same PTX instruction.
void join_collective(Thread& t, u32 mask, int kind, int site, bool aligned, Collective function,
                     int line);

template <int Kind>
void shuffle(Warp& warp, u32 mask) {
  u32 values[32];
  for (int lane = 0; lane < warp.size; ++lane) values[lane] = warp.threads[lane]->in[0];
  for (int lane = 0; lane < warp.size; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Thread& t = *warp.threads[lane];
    const u32 b = t.in[1] & 31;
    const int clamp = t.in[2] & 31;
    const int segment_mask = (t.in[2] >> 8) & 31;
    const int highest = (lane & segment_mask) | (clamp & ~segment_mask);
    const int lowest = lane & segment_mask;
    int source = 0;
    bool in_range = false;
    if (Kind == kShuffleUp) {
      source = lane - static_cast<int>(b);
      in_range = source >= highest;
    } else if (Kind == kShuffleDown) {
      source = lane + static_cast<int>(b);
      in_range = source <= highest;
    } else if (Kind == kShuffleButterfly) {
      source = lane ^ static_cast<int>(b);
      in_range = source <= highest;
    } else {
      source = lowest | static_cast<int>(b & ~segment_mask);
      in_range = source <= highest;
    }
    if (!in_range) source = lane;
    if (!(mask >> source & 1)) {
      fail(t, Fault::kCollectiveMismatch, t.wait_line,
           "shfl.sync lane %d reads lane %d, which is not active in the mask %08x", lane, source,
           mask);
    }
    t.out[0] = values[source];
    t.out[1] = in_range;
  }
}

template <int Kind>
void vote(Warp& warp, u32 mask) {
  u32 ballot = 0;
  for (int lane = 0; lane < warp.size; ++lane) {
    if ((mask >> lane & 1) && warp.threads[lane]->in[0]) ballot |= 1u << lane;
  }
  u32 result = ballot;
  if (Kind == kVoteAll) result = ballot == mask;
  if (Kind == kVoteAny) result = ballot != 0;
  if (Kind == kVoteUniform) result = ballot == 0 || ballot == mask;
  for (int lane = 0; lane < warp.size; ++lane) {
    if (mask >> lane & 1) warp.threads[lane]->out[0] = result;
  }
}

inline void match_any(Warp& warp, u32 mask) {
  for (int lane = 0; lane < warp.size; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Thread& t = *warp.threads[lane];
    u32 equal = 0;
    for (int other = 0; other < warp.size; ++other) {
      const Thread& o = *warp.threads[other];
      if ((mask >> other & 1) && o.in[0] == t.in[0] && o.in[1] == t.in[1]) equal |= 1u << other;
    }
    t.out[0] = equal;
  }
}

template <int Operation, bool IsSigned>
u32 reduce_step(u32 a, u32 b) {
  const bool a_is_less = IsSigned ? static_cast<i32>(a) < static_cast<i32>(b) : a < b;
  switch (Operation) {
    case kReduceAdd:
      return a + b;
    case kReduceMin:
      return a_is_less ? a : b;
    case kReduceMax:
      return a_is_less ? b : a;
    case kReduceAnd:
      return a & b;
    case kReduceOr:
      return a | b;
    default:
      return a ^ b;
  }
}

template <int Operation, bool IsSigned>
void reduce(Warp& warp, u32 mask) {
  bool is_first = true;
  u32 result = 0;
  for (int lane = 0; lane < warp.size; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const u32 value = warp.threads[lane]->in[0];
    result = is_first ? value : reduce_step<Operation, IsSigned>(result, value);
    is_first = false;
  }
  for (int lane = 0; lane < warp.size; ++lane) {
    if (mask >> lane & 1) warp.threads[lane]->out[0] = result;
  }
}

}  // namespace ptxcpu
