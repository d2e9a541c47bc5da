#include "axis_taps.hpp"

#include <algorithm>
#include <array>
#include <deque>
#include <utility>
#include <vector>

namespace pyconv::cpu {

struct AxisTaps::Storage {
  struct Group {
    std::vector<AxisTap> taps;
    std::vector<AxisPosition> positions;
  };
  AxisGeometry geometry;
  bool backward;
  int users = 1;  // all in one thread; the first is the memory of that thread
  std::deque<Group> groups;
  std::vector<AxisClass> classes;

  Storage(const AxisGeometry& g, bool is_backward);
  static Storage* find(const AxisGeometry& g, bool backward);
  static void release(Storage* storage);
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

AxisTaps::Storage::Storage(const AxisGeometry& g, bool is_backward)
    : geometry(g), backward(is_backward) {
  const int64_t positions = backward ? g.in : g.out;
  for (int64_t position = 0; position < positions; ++position) {
    std::vector<AxisTap> taps = taps_of(g, position, backward);
    const int64_t origin = taps.empty() ? 0 : taps.front().offset;
    for (AxisTap& tap : taps) tap.offset -= origin;
    // Neighbours mostly share a class, so the newest ones are tried first.
    auto group = std::find_if(groups.rbegin(), groups.rend(),
                              [&](const Group& other) { return same(other.taps, taps); });
    if (group == groups.rend()) {
      groups.push_back({std::move(taps), {}});
      group = groups.rbegin();
    }
    group->positions.push_back({position, origin});
  }
  for (const Group& group : groups) {
    classes.push_back({group.taps.data(), static_cast<int64_t>(group.taps.size()),
                       group.positions.data(), static_cast<int64_t>(group.positions.size())});
  }
}

// The last few of this thread.
AxisTaps::Storage* AxisTaps::Storage::find(const AxisGeometry& g, bool backward) {
  struct Remembered {
    std::array<Storage*, 32> storages = {};
    size_t oldest = 0;
    ~Remembered() {
      for (Storage* storage : storages) release(storage);
    }
  };
  thread_local Remembered remembered;
  for (Storage* storage : remembered.storages) {
    if (storage != nullptr && storage->backward == backward && storage->geometry == g) {
      return storage;
    }
  }
  Storage* const made = new Storage(g, backward);
  release(std::exchange(remembered.storages[remembered.oldest], made));
  remembered.oldest = (remembered.oldest + 1) % remembered.storages.size();
  return made;
}

void AxisTaps::Storage::release(Storage* storage) {
  if (storage != nullptr && --storage->users == 0) delete storage;
}

AxisTaps::AxisTaps(const AxisGeometry& g, bool backward) : storage_(Storage::find(g, backward)) {
  ++storage_->users;
  classes = storage_->classes.data();
  class_count = static_cast<int64_t>(storage_->classes.size());
}
AxisTaps::~AxisTaps() { Storage::release(storage_); }

AxisTaps AxisTaps::forward(const AxisGeometry& g) { return AxisTaps(g, false); }
AxisTaps AxisTaps::backward_data(const AxisGeometry& g) { return AxisTaps(g, true); }

}  // namespace pyconv::cpu
