#include "cgroup.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>

namespace pyconv::cpu {

namespace {

constexpr double unlimited = std::numeric_limits<double>::infinity();

double ratio(double quota, double period) {
  return quota > 0 && period > 0 ? quota / period : unlimited;
}

// Version 2: "max 100000", or microseconds of time and of the period in which they may be used.
double limit_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max") return unlimited;
  return ratio(std::atof(quota.c_str()), period);
}

// Version 1: the same in two files, -1 for no limit.
double limit_v1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
  std::ifstream period_file(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (!(quota_file >> quota) || !(period_file >> period)) return unlimited;
  return ratio(quota, period);
}

// The least of a group and of those that it is in. In a container `path` may be the host's and lead
// nowhere; what is mounted as the uppermost is the container's then.
double limit_up_from(const std::string& mount, std::string path,
                     double (*limit)(const std::string& folder)) {
  double least = unlimited;
  for (;;) {
    least = std::min(least, limit(mount + path));
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return least;
    path.erase(slash);
  }
}

}  // namespace

int granted_cpus(const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup";
  double least = unlimited;
  // Lines "hierarchy:controllers:path"; version 2 has the hierarchy 0 and names no controllers.
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      least = std::min(least, limit_up_from(mount, path, limit_v2));
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      // Mounted under its controllers' names, which "cpu" mostly is a link to.
      for (const char* name : {controllers.c_str(), "cpu"}) {
        least = std::min(least, limit_up_from(mount + "/" + name, path, limit_v1));
      }
    }
  }
  return least == unlimited ? 0 : std::max(1, static_cast<int>(std::min(least, 1e6) + 0.5));
}

}  // namespace pyconv::cpu
