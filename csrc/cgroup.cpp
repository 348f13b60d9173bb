#include "cgroup.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>

namespace gqa {
namespace {

constexpr double unlimited = std::numeric_limits<double>::infinity();

double quotient(double allowed, double period) { return allowed > 0 && period > 0 ? allowed / period : unlimited; }

double cpus_of_v2(const std::string& group) {
  std::string allowed;  // "max" without a quota, which is 0 as a number
  double period = 0;
  std::ifstream(group + "/cpu.max") >> allowed >> period;
  return quotient(std::atof(allowed.c_str()), period);
}

double cpus_of_v1(const std::string& group) {
  double allowed = -1, period = 0;
  std::ifstream(group + "/cpu.cfs_quota_us") >> allowed;
  std::ifstream(group + "/cpu.cfs_period_us") >> period;
  return quotient(allowed, period);
}

// The least of a group, "/a/b", and the groups around it.
double least_of(double cpus_of(const std::string&), const std::string& mount, std::string group) {
  if (group.find("/..") != group.npos) group.clear();  // outside of what is mounted here
  double least = cpus_of(mount);
  while (!group.empty()) {
    least = std::min(least, cpus_of(mount + group));
    group.erase(std::min(group.rfind('/'), group.size()));
  }
  return least;
}

bool lists_cpu(const std::string& controllers) { return ("," + controllers + ",").find(",cpu,") != controllers.npos; }

}  // namespace

int cpu_quota(const std::string& process_groups, const std::string& mounts) {
  double cpus = unlimited;
  std::ifstream file(process_groups);
  for (std::string line; std::getline(file, line);) {  // "number:controllers:group"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
    if (controllers.empty())
      for (const char* mount : {"", "/unified"}) cpus = std::min(cpus, least_of(cpus_of_v2, mounts + mount, group));
    else if (lists_cpu(controllers))
      for (const std::string& mount : {std::string("cpu"), controllers})
        cpus = std::min(cpus, least_of(cpus_of_v1, mounts + "/" + mount, group));
  }
  return cpus < no_quota ? std::max(1, int(std::ceil(cpus))) : no_quota;
}

}  // namespace gqa
