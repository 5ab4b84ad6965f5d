// out = x wᵀ. One token: inner products with the rows of w as they lie, at the speed of memory. More:
// the blocked product of product_impl.h, exact in f32 or with x rounded to bf16 for a matrix unit.
#include <algorithm>

#include "backend/cpu/cpu_backend.h"

namespace stief {

void CpuBackend::matmul(float* out, const float* x, const Weight& w, int T, bool add) {
    if (T == 1) matvec(out, x, w, add);
    else if (T > 1) blocked_product(out, x, w, T, add);
}

// Pieces of about 64 KB of weights: 100 times what claiming one costs, few enough to stop together.
void CpuBackend::matvec(float* out, const float* x, const Weight& w, bool add) {
    constexpr size_t PIECE = size_t(64) << 10, TOGETHER = 4;    // rows that a kernel takes at once
    size_t N = size_t(w.N), K = size_t(w.K), row = K * size_of(w.dtype);
    size_t rows = (PIECE / std::max<size_t>(row, 1) + TOGETHER) / TOGETHER * TOGETHER;
    threads.run((N + rows - 1) / rows, [&](size_t i) {
        size_t first = i * rows, count = std::min(rows, N - first);
        const char* from = static_cast<const char*>(w.data) + first * row;
        kernels.matvec[int(w.dtype)](out + first, x, from, count, K, add);
    });
}

// Pieces are blocks of `lanes` outputs. Over k a block goes in chunks whose panel stays in the second
// cache while all tokens pass; a chunk's sum starts at zero, which also keeps rounding errors from
// growing with K.
void CpuBackend::blocked_product(float* out, const float* x, const Weight& w, int T, bool add) {
    constexpr size_t PANEL = size_t(128) << 10;        // bytes: an eighth to a half of that cache
    bool pairs = !exact && w.dtype == DType::BF16 && kernels.product_pairs;
    size_t N = size_t(w.N), K = size_t(w.K), lanes = size_t(kernels.lanes);
    size_t element = pairs ? 2 : 4, chunk = PANEL / (lanes * element);
    size_t row = padded_row((K + PAIRS_K - 1) / PAIRS_K * PAIRS_K * element), stride = row / element;

    activations.resize(size_t(T) * row + 64);
    char* rows = activations.data() + (64 - reinterpret_cast<uintptr_t>(activations.data()) % 64);
    for_rows(size_t(T), K, [&](size_t first, size_t end) {
        for (size_t t = first; t < end; t++) {
            char* to = rows + t * row;
            kernels.narrow[int(pairs ? DType::BF16 : DType::F32)](to, x + t * K, K);
            std::fill(to + K * element, to + row, char(0));
        }
    });

    threads.run((N + lanes - 1) / lanes, [&](size_t i) {
        size_t first = i * lanes;
        int n = int(std::min(lanes, N - first));
        char* panel = thread_scratch(lanes * chunk * element);
        const char* from = static_cast<const char*>(w.data) + first * K * size_of(w.dtype);
        for (size_t k0 = 0; k0 < K; k0 += chunk) {
            int k = int(std::min(chunk, K - k0));
            const char* part = from + k0 * size_of(w.dtype);
            if (pairs) {
                kernels.pack_pairs(panel, part, K, n, k);
                kernels.product_pairs(out + first, N, rows + k0 * 2, stride, panel, T, n,
                                      (k + PAIRS_K - 1) / PAIRS_K * PAIRS_K, add || k0 > 0);
            } else {
                float* plain = reinterpret_cast<float*>(panel);
                const float* left = reinterpret_cast<const float*>(rows) + k0;
                kernels.pack[int(w.dtype)](plain, part, K, n, k);
                kernels.product(out + first, N, left, stride, plain, lanes, T, n, k, add || k0 > 0);
            }
        }
    });
}

}  // namespace stief
