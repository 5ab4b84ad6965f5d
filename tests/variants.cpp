// The CPU's instruction sets with 1, 2 and 3 threads, and the GPU where there is one.
#include "backends.h"

namespace stief::testing {

static bool gpu_present() {
    try {
        Threads threads(1);
        return make_backend({.name = "cuda"}, threads) != nullptr;
    } catch (const Error&) {
        return false;
    }
}

std::vector<Variant> variants() {
    static const bool gpu = gpu_present();
    std::vector<Variant> all;
    if (!(gpu && only_gpu()))
        for (const std::string& isa : cpu_isas())
            for (int threads : {1, 2, 3}) all.push_back({isa, {"cpu", isa}, threads, {}});
    if (gpu) all.push_back({"cuda", {"cuda", "auto"}, 2, {}});
    return all;
}

}  // namespace stief::testing
