#include "backend/cpu/matrix_rate.h"

#include <chrono>

#include "backend/cpu/cpu_backend.h"

namespace stief {

// A panel of 16 KB, and of x one row, which every token reads. Long enough to share the processor
// with other processes as the measured work does.
double matrix_rate(const Kernels& kernels, Threads& threads, bool pairs) {
    constexpr int TOKENS = 96, K = 256, ROUNDS = 100;
    constexpr double SECONDS = 0.2;
    int n = kernels.lanes, k = pairs ? K : K / 2;
    size_t pieces = 4 * size_t(threads.count());
    size_t out = size_t(TOKENS * n), panel = size_t(K * n) / 2;
    auto start = std::chrono::steady_clock::now();
    double flops = 0, seconds = 0;
    while (seconds < SECONDS) {
        threads.run(pieces, [&](size_t) {
            float* to = reinterpret_cast<float*>(thread_scratch((out + panel + size_t(K)) * 4));
            float *from = to + out, *x = from + panel;
            std::fill(from, x + K, 0.0f);
            for (int i = 0; i < ROUNDS; i++)
                if (pairs) kernels.product_pairs(to, size_t(n), x, 0, from, TOKENS, n, k, false);
                else kernels.product(to, size_t(n), x, 0, from, size_t(n), TOKENS, n, k, false);
        });
        flops += 2.0 * TOKENS * n * k * ROUNDS * double(pieces);
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    return flops / seconds;
}

}  // namespace stief
