// cgroup.h: how many CPUs the control groups of this process leave to it.
#pragma once

#include <string>

namespace gqa {

constexpr int no_quota = 1 << 20;

// CPUs that the tightest quota amounts to, rounded up, of the process's own group and of all that it lies in;
// `no_quota` where there is none. For groups of version 1 and 2 and both at once; of groups that are not mounted here,
// as in a container, those that are count.
int cpu_quota(const std::string& process_groups = "/proc/self/cgroup", const std::string& mounts = "/sys/fs/cgroup");

}  // namespace gqa
