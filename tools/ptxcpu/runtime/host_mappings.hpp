// The memory map of this process, for launches that may touch memory nobody registered.
#pragma once
#include "launch.hpp"

namespace ptxcpu {

/// Whether anything is mapped at the address. One system call, much cheaper than reading the map.
bool is_mapped(u64 address);

/// Reads the map again; call at the start of a launch, since buffers come and go between launches.
void refresh_host_mappings();

/// Finds the mapping around [address, address + bytes) with the needed permission.
bool find_host_mapping(u64 address, u64 bytes, bool for_writing, Range& mapping);

}  // namespace ptxcpu
