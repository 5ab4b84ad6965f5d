#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"

namespace stief {

std::unique_ptr<Backend> make_backend(const BackendOptions& options, Threads& threads) {
    if (options.name == "cuda")
        fail("--backend cuda: this build has no CUDA (see make's first lines)");
    check(options.name == "auto" || options.name == "cpu",
          "--backend %s: expected auto, cpu or cuda", options.name.c_str());
    return std::make_unique<CpuBackend>(options, threads);
}

}  // namespace stief
