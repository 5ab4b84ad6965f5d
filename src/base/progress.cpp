#include "base/progress.h"

#include <unistd.h>

#include "base/check.h"
#include "base/descriptors.h"

namespace stief {

using Clock = std::chrono::steady_clock;

Progress::Progress(std::string what, std::string counted, bool quiet)
    : on(!quiet && obeys_escapes(STDERR_FILENO)),
      label(std::move(what)),
      unit(std::move(counted)),
      start(Clock::now()),
      last(start) {}

void Progress::clear() {
    if (shown) write_stderr("\r\033[K");
    shown = false;
}

void Progress::update(size_t done, size_t total, const std::string& extra) {
    Clock::time_point now = Clock::now();
    if (!on || (shown && done < total && now - last < std::chrono::milliseconds(100))) return;
    last = now;
    shown = true;
    double seconds = std::chrono::duration<double>(now - start).count();
    double rate = seconds > 0 ? double(done) / seconds : 0;
    std::string left = done ? human_time(double(total - done) / rate) : "?";
    write_stderr(format("\r\033[K%s %zu/%zu %s · %.0f/s · %s left%s%s", label.c_str(), done, total,
               unit.c_str(), rate, left.c_str(), extra.empty() ? "" : " · ", extra.c_str()));
}

std::string human_bytes(double bytes) {
    const char* units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (bytes >= 1024 && unit < 4) bytes /= 1024, unit++;
    return format(unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

std::string human_time(double seconds) {
    if (seconds < 60) return format("%.0fs", seconds);
    if (seconds < 3600) return format("%dm%02ds", int(seconds) / 60, int(seconds) % 60);
    return format("%dh%02dm", int(seconds) / 3600, int(seconds) % 3600 / 60);
}

}  // namespace stief
