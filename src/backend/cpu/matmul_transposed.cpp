// out = x w, the product that carries a gradient back through out = x wᵀ: the blocked product of
// product_impl.h with rows of w as rows of the panel. Exact in f32, or x rounded to bf16, as in matmul.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace stief {

// panel (n, lanes) ← columns of rows `from`, `row` bytes apart, widened.
static void pack_rows(const Kernels& kernels, float* panel, const char* from, size_t row, DType dtype,
                      size_t n, size_t columns, size_t lanes) {
    for (size_t i = 0; i < n; i++, panel += lanes, from += row) {
        kernels.widen[int(dtype)](panel, from, columns);
        std::fill(panel + columns, panel + lanes, 0.0f);
    }
}

// panel (n/2, lanes, 2) ← two rows of bf16 interleaved; n is filled with zeros to a multiple of PAIRS_K.
static void pack_row_pairs(uint16_t* panel, const char* from, size_t row, size_t n, size_t columns,
                           size_t lanes) {
    size_t padded = (n + PAIRS_K - 1) / PAIRS_K * PAIRS_K;
    std::memset(panel, 0, padded * lanes * 2);
    for (size_t i = 0; i < n; i++, from += row) {
        uint16_t* to = panel + i / 2 * lanes * 2 + i % 2;
        for (size_t j = 0; j < columns; j++) std::memcpy(to + 2 * j, from + 2 * j, 2);
    }
}

void CpuBackend::matmul_transposed(float* out, const float* x, const Weight& w, int T) {
    bool pairs = !exact && w.dtype == DType::BF16 && kernels.product_pairs && T > 1;
    size_t N = size_t(w.N), K = size_t(w.K), lanes = size_t(kernels.lanes), width = size_of(w.dtype);
    size_t element = pairs ? 2 : 4, chunk = (size_t(64) << 10) / (lanes * element);
    size_t row = padded_row((N + PAIRS_K - 1) / PAIRS_K * PAIRS_K * element), stride = row / element;

    activations.resize(size_t(T) * row + 64);
    char* rows = activations.data() + (64 - reinterpret_cast<uintptr_t>(activations.data()) % 64);
    for_rows(size_t(T), N, [&](size_t first, size_t end) {
        for (size_t t = first; t < end; t++) {
            char* to = rows + t * row;
            kernels.narrow[int(pairs ? DType::BF16 : DType::F32)](to, x + t * N, N);
            std::fill(to + N * element, to + row, char(0));
        }
    });

    threads.run((K + lanes - 1) / lanes, [&](size_t i) {
        size_t first = i * lanes, columns = std::min(lanes, K - first);
        char* panel = thread_scratch(lanes * chunk * element);
        const char* from = static_cast<const char*>(w.data) + first * width;
        for (size_t n0 = 0; n0 < N; n0 += chunk) {
            size_t n = std::min(chunk, N - n0);
            const char* part = from + n0 * K * width;
            if (pairs) {
                pack_row_pairs(reinterpret_cast<uint16_t*>(panel), part, K * width, n, columns, lanes);
                kernels.product_pairs(out + first, K, rows + n0 * 2, stride, panel, T, int(columns),
                                      int((n + PAIRS_K - 1) / PAIRS_K * PAIRS_K), n0 > 0);
            } else {
                float* plain = reinterpret_cast<float*>(panel);
                pack_rows(kernels, plain, part, K * width, w.dtype, n, columns, lanes);
                const float* left = reinterpret_cast<const float*>(rows) + n0;
                kernels.product(out + first, K, left, stride, plain, lanes, T, int(columns), int(n),
                                n0 > 0);
            }
        }
    });
}

}  // namespace stief
