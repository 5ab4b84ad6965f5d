// One line on stderr that says how far something is: done / total, rate, time left; of a phase whose
// total is 0 its name alone. It is rewritten in place, at most ten times a second, no wider than the
// terminal, and silent where stderr is no terminal that does so.
#pragma once
#include <chrono>
#include <string>

namespace stief {

struct Progress {
    bool on;
    std::string label, unit;

    Progress(std::string what, std::string counted, bool quiet);   // "perplexity", "tokens"
    ~Progress() { clear(); }
    void clear();                                                  // removes the line
    void update(size_t done, size_t total, const std::string& extra = "");   // done = 0 begins a phase

  private:
    std::chrono::steady_clock::time_point start, last;
    bool shown = false;
};

std::string human_bytes(double bytes);       // "1.5 GiB"
std::string human_time(double seconds);      // "2m05s"

}  // namespace stief
