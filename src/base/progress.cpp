#include "base/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

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

// To one column less than there are, as the last one may wrap. Each character here takes one.
static std::string cut_to_width(const std::string& text) {
    struct winsize size = {};
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 2) return text;
    size_t end = 0, columns = 0;
    auto begins = [&](size_t i) { return (text[i] & 0xc0) != 0x80; };
    for (; end < text.size(); end++)
        if (begins(end) && ++columns == size.ws_col) break;
    return text.substr(0, end);
}

void Progress::clear() {
    if (shown) write_stderr("\r\033[K");
    shown = false;
}

void Progress::update(size_t done, size_t total, const std::string& extra) {
    Clock::time_point now = Clock::now();
    if (done == 0) start = now;
    if (!on || (shown && done > 0 && done < total && now - last < std::chrono::milliseconds(100))) return;
    last = now;
    shown = true;
    double seconds = std::chrono::duration<double>(now - start).count();
    double rate = seconds > 0 ? double(done) / seconds : 0;
    std::string left = done ? human_time(double(total - std::min(done, total)) / rate) : "?";
    std::string text = label;
    if (total)
        text += format(" %zu/%zu %s · %.0f/s · %s left", done, total, unit.c_str(), rate, left.c_str());
    if (!extra.empty()) text += " · " + extra;
    write_stderr("\r\033[K" + cut_to_width(text));
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
