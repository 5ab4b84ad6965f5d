#include "base/limits.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <thread>

namespace stief {

constexpr double UNLIMITED = std::numeric_limits<double>::infinity();

// The number after `key` in a file of "key value" lines (/proc/meminfo, memory.stat); -1 if absent.
static double field(const std::string& path, const std::string& key) {
    std::ifstream file(path);
    std::string word, rest;
    while (file >> word) {
        double value = -1;
        if (word == key && file >> value) return value;
        std::getline(file, rest);
    }
    return -1;
}

// The file's first number; "max" and a missing file mean no limit.
static double first_number(const std::string& path) {
    std::ifstream file(path);
    double value = 0;
    return file >> value ? value : UNLIMITED;
}

// Calls visit(folder, is version 2) for this process's cgroup of that controller and all above it.
// In a container the path in /proc/self/cgroup may not be visible: then only the mount point is.
static void for_each_cgroup(const std::string& controller,
                            const std::function<void(const std::string&, bool)>& visit) {
    std::ifstream file("/proc/self/cgroup");
    std::string line;
    while (std::getline(file, line)) {
        size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
        bool version2 = names == ",,";
        if (!version2 && names.find("," + controller + ",") == std::string::npos) continue;
        std::string path = line.substr(second + 1);
        std::string root = "/sys/fs/cgroup" + (version2 ? "" : "/" + controller);
        for (;;) {
            while (!path.empty() && path.back() == '/') path.pop_back();
            visit(root + path, version2);
            if (path.empty()) break;
            path.erase(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
        }
    }
}

// Cores that a quota allows: "max 100000" or "200000 100000" in one file (v2), or two files (v1).
static double quota_cores(const std::string& folder, bool version2) {
    double quota = UNLIMITED, period = 1;
    if (version2) {
        std::ifstream file(folder + "/cpu.max");
        if (!(file >> quota >> period)) return UNLIMITED;
    } else {
        quota = first_number(folder + "/cpu.cfs_quota_us");
        period = first_number(folder + "/cpu.cfs_period_us");
    }
    bool limited = quota > 0 && quota < UNLIMITED && period > 0 && period < UNLIMITED;
    return limited ? quota / period : UNLIMITED;
}

int usable_cores() {
    double cores = std::max(1u, std::thread::hardware_concurrency());
#ifdef __linux__
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) cores = CPU_COUNT(&mask);
#endif
    for_each_cgroup("cpu", [&](const std::string& folder, bool version2) {
        cores = std::min(cores, std::ceil(quota_cores(folder, version2)));
    });
    return std::max(1, int(cores));
}

size_t available_memory() {
    double available = field("/proc/meminfo", "MemAvailable:") * 1024;
    if (available < 0) available = UNLIMITED;
    for_each_cgroup("memory", [&](const std::string& folder, bool version2) {
        double limit = first_number(folder + (version2 ? "/memory.max" : "/memory.limit_in_bytes"));
        double used =
            first_number(folder + (version2 ? "/memory.current" : "/memory.usage_in_bytes"));
        // File pages, the mapped checkpoint's among them, are given back when memory is wanted.
        double files = field(folder + "/memory.stat", version2 ? "file" : "total_cache");
        if (limit == UNLIMITED || used == UNLIMITED) return;
        available = std::min(available, limit - used + std::max(0.0, files));
    });
    return available < 9e18 ? size_t(std::max(0.0, available)) : SIZE_MAX;
}

size_t resident_memory() {
    double kib = field("/proc/self/status", "RssAnon:");
    return kib > 0 ? size_t(kib) * 1024 : 0;
}

}  // namespace stief
