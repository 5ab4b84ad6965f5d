// cpu or cuda: the one place that knows whether this build has both.
#include "backend/backend.h"
#include "backend/cpu/cpu_backward.h"

namespace stief {

#ifdef HAVE_CUDA
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);  // cuda/cuda_backend.cu
std::unique_ptr<Backward> make_cuda_backward(Backend& backend);             // cuda/backward.cu
#else
static std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) {
    fail("--backend cuda: this build has no CUDA; build it where nvcc is found (the first lines of "
         "make say so)");
}
static std::unique_ptr<Backward> make_cuda_backward(Backend& backend) {
    fail("--backend %s: this build has no CUDA", backend.name.c_str());
}
#endif

// auto: the GPU where there is one that works, unless an instruction set of the CPU is asked for.
std::unique_ptr<Backend> make_backend(const BackendOptions& options, Threads& threads) {
    check(options.name == "auto" || options.name == "cpu" || options.name == "cuda",
          "--backend %s: expected auto, cpu or cuda", options.name.c_str());
    if (options.name == "cuda") return make_cuda_backend(options);
    if (options.name == "auto" && options.isa == "auto") {
        try {
            return make_cuda_backend(options);
        } catch (const Error&) {  // no CUDA, no device, an old driver: the CPU does
        }
    }
    return std::make_unique<CpuBackend>(options, threads);
}

std::unique_ptr<Backward> make_backward(Backend& backend) {
    if (backend.name == "cuda") return make_cuda_backward(backend);
    return std::make_unique<CpuBackward>(static_cast<CpuBackend&>(backend));
}

}  // namespace stief
