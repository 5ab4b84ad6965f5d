// Operations on single elements and rows: embed, swiglu, argmax, and the stream that measures
// memory.
#include <algorithm>
#include <atomic>

#include "backend/cpu/cpu_backend.h"

namespace stief {

void CpuBackend::embed(float* out, const Weight& table, const Step& step) {
    size_t D = size_t(table.K), row = D * size_of(table.dtype);
    const int32_t* ids = step.token ? step.token : step.ids;
    for_rows(size_t(step.T), D, [&](size_t first, size_t end) {
        for (size_t t = first; t < end; t++) {
            const char* from = static_cast<const char*>(table.data) + size_t(std::max(ids[t], 0)) * row;
            kernels.widen[int(table.dtype)](out + t * D, from, D);
        }
    });
}

void CpuBackend::swiglu(float* gate, const float* up, int T, int F) {
    constexpr size_t BLOCK = 4096;                     // elements; a multiple of every vector
    size_t n = size_t(T) * size_t(F), blocks = (n + BLOCK - 1) / BLOCK;
    for_rows(blocks, BLOCK, [&](size_t first, size_t end) {
        size_t from = first * BLOCK, to = std::min(end * BLOCK, n);
        kernels.swiglu(gate + from, up + from, to - from);
    });
}

void CpuBackend::gated(Operand gate, float* up, const Input& x, const Weight& w_gate,
                       const Weight& w_up, int T) {
    Projection both[] = {{gate.data, w_gate}, {up, w_up}};
    matmul(both, x, T, false);
    swiglu(gate.data, up, T, w_gate.N);
}

void CpuBackend::argmax(int32_t* out, const float* x, int T, int V) {
    for_rows(size_t(T), size_t(V), [&](size_t first, size_t end) {
        for (size_t t = first; t < end; t++) {
            const float* row = x + t * size_t(V);
            float most = kernels.largest(row, size_t(V));
            out[t] = -1;
            for (int j = V; j-- > 0;) {                // down, so that the first of equals stays
                if (row[j] == most) out[t] = j;
                if (row[j] != row[j]) {
                    out[t] = -1;
                    break;
                }
            }
        }
    });
}

uint64_t CpuBackend::stream(const void* memory, size_t bytes) {
    constexpr size_t PIECE = size_t(1) << 20;
    std::atomic<uint64_t> sum{0};
    threads.run((bytes + PIECE - 1) / PIECE, [&](size_t i) {
        size_t first = i * PIECE;
        sum += kernels.checksum(static_cast<const char*>(memory) + first,
                                std::min(PIECE, bytes - first));
    });
    return sum;
}

}  // namespace stief
