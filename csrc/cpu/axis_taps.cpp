#include "axis_taps.hpp"

#include <algorithm>
#include <deque>
#include <memory>
#include <vector>

namespace pyconv::cpu {

struct AxisTaps::Storage {
  struct Group {
    std::vector<AxisTap> taps;
    std::vector<AxisPosition> positions;
  };
  std::deque<Group> groups;
  std::vector<AxisClass> classes;
};

namespace {

// Taps of one position with absolute source indices.
std::vector<AxisTap> taps_of(const AxisGeometry& g, int64_t position, bool backward) {
  std::vector<AxisTap> taps;
  for (int64_t k = 0; k < g.kernel; ++k) {
    if (backward) {
      const int64_t numerator = position + g.pad - (g.kernel - 1 - k) * g.dilation;
      if (numerator >= 0 && numerator % g.stride == 0 && numerator / g.stride < g.out) {
        taps.push_back({k, numerator / g.stride});
      }
    } else {
      const int64_t source = position * g.stride - g.pad + k * g.dilation;
      if (source >= 0 && source < g.in) taps.push_back({k, source});
    }
  }
  return taps;
}

bool same(const std::vector<AxisTap>& a, const std::vector<AxisTap>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const AxisTap& s, const AxisTap& t) {
    return s.k == t.k && s.offset == t.offset;
  });
}

}  // namespace

AxisTaps::AxisTaps(const AxisGeometry& g, bool backward) {
  auto storage = std::make_unique<Storage>();
  const int64_t positions = backward ? g.in : g.out;
  for (int64_t position = 0; position < positions; ++position) {
    std::vector<AxisTap> taps = taps_of(g, position, backward);
    const int64_t origin = taps.empty() ? 0 : taps.front().offset;
    for (AxisTap& tap : taps) tap.offset -= origin;
    // Neighbours mostly share a class, so the newest ones are tried first.
    auto group = std::find_if(storage->groups.rbegin(), storage->groups.rend(),
                              [&](const Storage::Group& other) { return same(other.taps, taps); });
    if (group == storage->groups.rend()) {
      storage->groups.push_back({std::move(taps), {}});
      group = storage->groups.rbegin();
    }
    group->positions.push_back({position, origin});
  }
  for (const Storage::Group& group : storage->groups) {
    storage->classes.push_back({group.taps.data(), static_cast<int64_t>(group.taps.size()),
                                group.positions.data(),
                                static_cast<int64_t>(group.positions.size())});
  }
  classes = storage->classes.data();
  class_count = static_cast<int64_t>(storage->classes.size());
  storage_ = storage.release();
}

AxisTaps AxisTaps::forward(const AxisGeometry& g) { return AxisTaps(g, false); }
AxisTaps AxisTaps::backward_data(const AxisGeometry& g) { return AxisTaps(g, true); }

AxisTaps::~AxisTaps() { delete storage_; }

}  // namespace pyconv::cpu
