// What a container or a service manager grants of the machine.
#pragma once

#include <string>

namespace pyconv::cpu {

// CPUs' worth of time, rounded, at least 1, that the control group of this process and those above
// it grant (version 2, or 1), or 0 where none sets a limit. OpenMP looks at the affinity mask only.
// Files are read below `root`, as "/proc/self/cgroup" and in "/sys/fs/cgroup"; empty but for tests.
int granted_cpus(const std::string& root);

}  // namespace pyconv::cpu
