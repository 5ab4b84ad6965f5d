// The kernels played by the host, in three orders of threads and blocks.
#include "backends.h"
#include "simt.h"

namespace stief::testing {

std::vector<Variant> variants() {
    std::vector<Variant> all;
    for (simt::Order order : {simt::Order::Forward, simt::Order::Reverse, simt::Order::Shuffled})
        all.push_back({"cuda, played", {"cuda", "auto"}, 1, [=] { simt::order = order; }, true});
    return all;
}

}  // namespace stief::testing
