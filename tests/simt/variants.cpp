// The kernels played by the host, on a small machine and, in another order of threads and blocks,
// on one as large as an H100: more splits of the context, two rows a warp only from more rows on,
// and shared memory for everything. (That a result is the same in every order watch/test_race.cpp
// shows.)
#include "backends.h"
#include "simt.h"

namespace stief::testing {

static void use_machine(bool large) {
    static simt::Machine small;
    if (large == (simt::machine.processors == simt::large_machine().processors)) return;
    if (large) small = simt::machine;
    simt::machine = large ? simt::large_machine() : small;
}

std::vector<Variant> variants() {
    auto variant = [](const char* group, simt::Order order, bool large) {
        auto prepare = [=] { simt::order = order, use_machine(large); };
        return Variant{group, {"cuda", "auto"}, 1, prepare, true};
    };
    return {variant("cuda, played", simt::Order::Forward, false),
            variant("cuda, played, 132 multiprocessors", simt::Order::Shuffled, true)};
}

}  // namespace stief::testing
