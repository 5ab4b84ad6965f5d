// What this process may use of the machine: cores and memory, as the system and every cgroup above
// the process allow. A container that may use 2 of 64 cores starts 2 threads, not 64.
#pragma once
#include <cstddef>

namespace stief {

int usable_cores();            // affinity mask ∩ cgroup cpu quota, rounded up; at least 1
size_t available_memory();     // bytes that can still be taken without swapping or being killed
size_t resident_memory();      // bytes of this process's own that lie in memory; mapped files aside

}  // namespace stief
