// What storing does to rows, and the direction of the model's own score (calibrate/README.md §6,
// §7). Twin: cuda/backward_rows.cu.
#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backward.h"
#include "backend/cpu/vectors.h"

namespace stief {

using namespace vectors;

// ln Σ eᶻ
static double log_sum(const Kernels& kernels, const float* z, size_t n) {
    float most = kernels.largest(z, n);
    return double(most) + std::log(kernels.exp_total(z, n, most));
}

void CpuBackward::divergence_gradient(float* z, const float* reference, int rows, int V) {
    size_t n = size_t(V);
    threads.run(size_t(rows), [&](size_t row) {
        float* at = z + row * n;
        const float* full = reference + row * n;
        float mine = float(log_sum(cpu.kernels, at, n)), theirs = float(log_sum(cpu.kernels, full, n));
        by_fours(n, [&](size_t i, size_t width) {
            store(at + i, exp(load(at + i, width) - mine) - exp(load(full + i, width) - theirs),
                  width);
        });
    });
}

void CpuBackward::score_direction(float* z, uint64_t seed, int rows, int V) {
    size_t n = size_t(V);
    threads.run(size_t(rows), [&](size_t row) {
        float* at = z + row * n;
        float half = float(0.5 * log_sum(cpu.kernels, at, n));
        uint64_t signs = 0;
        double inner = 0;
        by_fours(n, [&](size_t i, size_t width) {
            if (i % 64 == 0) signs = score_signs(seed, row, i / 64);
            Four root = exp(load(at + i, width) * 0.5f - half);  // √p
            for (size_t j = 0; j < 4; j++, signs >>= 1)
                root[j] = j >= width ? 0 : signs & 1 ? root[j] : -root[j];
            store(at + i, root, width);
            inner += double(sum(root));
        });
        float shift = float(inner);
        by_fours(n, [&](size_t i, size_t width) {
            Four root = load(at + i, width);
            store(at + i, root - root * root * shift, width);
        });
    });
}

void CpuBackward::round_rows(float* c, const float* weight, const RowFormat& format, DType dtype,
                             int rows, int d) {
    constexpr size_t AT_ONCE = 16;
    size_t kept = size_t(format.kept()), wide = size_t(d), bytes = format.bytes(dtype);
    const RowLayout* codes = format.is_whole() ? nullptr : &cpu.layout(format, dtype);
    cpu.for_rows(size_t(rows), 32 * wide, [&](size_t from, size_t to) {
        std::vector<unsigned char> packed(AT_ONCE * bytes + ROW_SLACK);
        for (size_t n; from < to; from += n) {
            n = std::min(AT_ONCE, to - from);
            float* at = c + from * wide;
            if (codes) {
                cpu.kernels.pack_rows(packed.data(), at, wide, weight, *codes, int(n));
                cpu.kernels.unpack_rows(at, wide, packed.data(), *codes, int(n));
            }
            for (float* row = at; row < at + n * wide; row += wide) {
                if (!codes) cpu.kernels.narrow[int(dtype)](packed.data(), row, kept);
                if (!codes) cpu.kernels.widen[int(dtype)](row, packed.data(), kept);
                std::fill(row + kept, row + wide, 0.0f);
            }
        }
    });
}

}  // namespace stief
