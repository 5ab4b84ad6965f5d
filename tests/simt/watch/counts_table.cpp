// make counts: the table of counts.h for every kernel, over the scenes of the race checker. Shapes
// are small; what stands for a request does not depend on them.
#define DOCTEST_CONFIG_IMPLEMENT
#include <algorithm>
#include <cstdio>
#include <string>

#include "counts.h"
#include "names.h"
#include "scenes.h"
#include "testing.h"

using namespace stief;
using namespace stief::testing;

namespace stief::testing {
std::string shared(const std::string&) {
    return "";
}
void skip(const std::string&) {}
}  // namespace stief::testing

int main() {
    doctest::Context context;  // scenes may CHECK
    simt::AccessCounter counter;
    for (const Scene& scene : scenes()) {
        simt::watcher = &counter;
        scene.play();
        simt::watcher = nullptr;
    }
    std::map<std::string, simt::Counts> rows;
    for (const auto& [function, counts] : counter.kernels)
        rows[simt::short_name(function)] = counts;
    auto share = [](uint64_t a, uint64_t b) { return b ? double(a) / double(b) : 0.0; };
    std::printf("%-50s %9s %9s %7s  %-34s %9s %9s %7s\n", "kernel", "shared", "rounds", "/ ideal",
                "most ways, where", "global", "sectors", "/ ideal");
    for (const auto& [name, c] : rows) {
        std::string worst =
            c.ways > 1 ? format("%u %s", c.ways, simt::place_of(c.ways_code).c_str()) : "";
        std::printf("%-50s %9llu %9.2f %7.2f  %-34s %9llu %9.2f %7.2f\n", name.c_str(),
                    static_cast<unsigned long long>(c.shared), share(c.rounds, c.shared),
                    share(c.rounds, c.ideal_rounds), worst.c_str(),
                    static_cast<unsigned long long>(c.global), share(c.sectors, c.global),
                    share(c.sectors, c.ideal_sectors));
    }
}
