#include "host_mappings.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <mutex>

namespace ptxcpu {

namespace {

struct Mapping {
  Range range;
  bool readable;
  bool writable;
};

std::mutex mappings_mutex;
std::vector<Mapping> mappings;

std::vector<Mapping> read_mappings() {
  std::vector<Mapping> result;
  FILE* file = fopen("/proc/self/maps", "r");
  if (!file) return result;
  char line[512];
  while (fgets(line, sizeof line, file)) {
    unsigned long long begin = 0;
    unsigned long long end = 0;
    char permissions[8] = {};
    if (sscanf(line, "%llx-%llx %7s", &begin, &end, permissions) != 3) continue;
    result.push_back({{begin, end}, permissions[0] == 'r', permissions[1] == 'w'});
  }
  fclose(file);
  return result;
}

/// Neighbouring mappings with the needed permission count as one: a big array may span several.
bool search(u64 address, u64 bytes, bool for_writing, Range& found) {
  Range merged{1, 0};
  for (const Mapping& mapping : mappings) {
    if (!(for_writing ? mapping.writable : mapping.readable)) continue;
    if (mapping.range.begin == merged.end) {
      merged.end = mapping.range.end;
    } else {
      merged = mapping.range;
    }
    if (!merged.contains(address, bytes)) continue;
    found = merged;
    return true;
  }
  return false;
}

}  // namespace

bool is_mapped(u64 address) {
  static const u64 page_bytes = static_cast<u64>(sysconf(_SC_PAGESIZE));
  unsigned char resident = 0;
  const u64 page = address / page_bytes * page_bytes;
  return mincore(reinterpret_cast<void*>(page), 1, &resident) == 0;
}

void refresh_host_mappings() {
  std::lock_guard<std::mutex> lock(mappings_mutex);
  mappings = read_mappings();
}

bool find_host_mapping(u64 address, u64 bytes, bool for_writing, Range& mapping) {
  std::lock_guard<std::mutex> lock(mappings_mutex);
  if (mappings.empty()) mappings = read_mappings();
  return search(address, bytes, for_writing, mapping);
}

}  // namespace ptxcpu
