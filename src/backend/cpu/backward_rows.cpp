// What storing does to rows, and the direction of the model's own score (calibrate/README.md §6,
// §7). Twin: cuda/backward_rows.cu.
#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backward.h"
#include "backend/cpu/vectors.h"

namespace stief {

using namespace vectors;

// ln Σ eᶻ
static double log_sum(const float* z, size_t n) {
    float most = *std::max_element(z, z + n);
    double sum =
        blocked_sum(n, [&](size_t i, size_t width) { return exp(load(z + i, width) - most); });
    return double(most) + std::log(sum);
}

void CpuBackward::divergence_gradient(float* z, const float* reference, int rows, int V) {
    size_t n = size_t(V);
    threads.run(size_t(rows), [&](size_t row) {
        float* at = z + row * n;
        const float* full = reference + row * n;
        float mine = float(log_sum(at, n)), theirs = float(log_sum(full, n));
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
        float half = float(0.5 * log_sum(at, n));
        auto sign = [&](size_t i) {
            return score_signs(seed, row, i / 64) >> (i % 64) & 1 ? 1.0f : -1.0f;
        };
        double inner = blocked_sum(n, [&](size_t i, size_t width) {
            Four root = exp(load(at + i, width) * 0.5f - half);  // √p
            for (size_t j = 0; j < width; j++) root[j] *= sign(i + j);
            store(at + i, root, width);
            return root;
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
    size_t kept = size_t(format.kept()), wide = size_t(d);
    cpu.for_rows(size_t(rows), 32 * wide, [&](size_t from, size_t to) {
        std::vector<unsigned char> row(format.bytes(dtype));
        for (size_t t = from; t < to; t++) {
            pack_row(row.data(), c + t * wide, weight, format, dtype);
            unpack_row(c + t * wide, row.data(), format, dtype);
            std::fill(c + t * wide + kept, c + (t + 1) * wide, 0.0f);
        }
    });
}

}  // namespace stief
