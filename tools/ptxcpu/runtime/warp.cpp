#include "warp.hpp"

namespace ptxcpu {

namespace {

void check_members_agree(const Warp& warp, u32 first_lane, u32 needed, Thread& by) {
  const Thread& first = *warp.threads[first_lane];
  const u32 mask = warp.member_mask[first_lane];
  for (int lane = 0; lane < warp.size; ++lane) {
    if (!(needed >> lane & 1)) continue;
    const Thread& other = *warp.threads[lane];
    const bool same_kind = other.collective_kind == first.collective_kind;
    const bool same_site =
        !first.collective_aligned || other.collective_site == first.collective_site;
    if (warp.member_mask[lane] == mask && same_kind && same_site) continue;
    fail(by, Fault::kCollectiveMismatch, first.wait_line,
         "warp collective mismatch: lane %u waits at PTX line %d with mask %08x, "
         "lane %d at PTX line %d with mask %08x",
         first_lane, first.wait_line, mask, lane, other.wait_line, warp.member_mask[lane]);
  }
}

}  // namespace

void complete_collectives(Warp& warp, Thread& by) {
  for (u32 candidates = warp.waiting; candidates; candidates &= candidates - 1) {
    const u32 lane = __builtin_ctz(candidates);
    if (!(warp.waiting >> lane & 1)) continue;  // released together with an earlier lane
    const u32 needed = warp.member_mask[lane] & warp.alive;
    if ((needed & warp.waiting) != needed) continue;
    check_members_agree(warp, lane, needed, by);
    const Collective collective = warp.threads[lane]->collective;
    if (collective) collective(warp, needed);
    warp.epoch++;
    warp.waiting &= ~needed;
    for (int other = 0; other < warp.size; ++other) {
      if (needed >> other & 1) warp.threads[other]->state = State::kRunnable;
    }
  }
}

void join_collective(Thread& t, u32 mask, int kind, int site, bool aligned, Collective function,
                     int line) {
  if (!(mask >> t.lane & 1)) {
    fail(t, Fault::kCollectiveMismatch, line, "lane %u is not in its own member mask %08x", t.lane,
         mask);
  }
  t.collective_kind = kind;
  t.collective_site = site;
  t.collective_aligned = aligned;
  t.collective = function;
  t.wait_line = line;
  t.wait_reason = "warp collective";
  t.state = State::kAtWarpCollective;
  t.warp->member_mask[t.lane] = mask;
  t.warp->waiting |= 1u << t.lane;
  complete_collectives(*t.warp, t);
  if (t.state != State::kRunnable) yield(t);
}

}  // namespace ptxcpu
