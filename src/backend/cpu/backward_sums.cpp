// Copies and sums over activations, and the turn of the bases.
// Twins: cuda/backward_sums.cu, cuda/cayley.cu.
#include <algorithm>

#include "backend/cpu/cpu_backward.h"
#include "backend/cpu/vectors.h"

namespace stief {

using namespace vectors;

void CpuBackward::zero(float* x, size_t n) {
    std::fill_n(x, n, 0.0f);
}

void CpuBackward::copy_rows(float* to, size_t to_stride, const float* from, size_t from_stride,
                            size_t rows, size_t width) {
    for (size_t i = 0; i < rows; i++)
        std::copy_n(from + i * from_stride, width, to + i * to_stride);
}

// Σ over fixed pieces, added in their order: the same for any number of threads.
template <class F>
static double piecewise(Threads& threads, size_t n, const F& piece) {
    constexpr size_t EACH = 16384;
    std::vector<double> sums((n + EACH - 1) / EACH);
    threads.run(sums.size(),
                [&](size_t i) { sums[i] = piece(i * EACH, std::min(n, (i + 1) * EACH)); });
    double total = 0;
    for (double one : sums) total += one;
    return total;
}

double CpuBackward::squared_norm(const float* x, size_t n) {
    return piecewise(threads, n, [&](size_t from, size_t to) {
        double sum[4] = {};
        for (size_t i = from; i < to; i++) sum[i % 4] += double(x[i]) * double(x[i]);
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    });
}

double CpuBackward::squared_distance(const float* a, const float* b, size_t n) {
    return piecewise(threads, n, [&](size_t from, size_t to) {
        double sum[4] = {};
        for (size_t i = from; i < to; i++) {
            double difference = double(a[i]) - double(b[i]);
            sum[i % 4] += difference * difference;
        }
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    });
}

void CpuBackward::scaled_difference(float* out, const float* a, const float* b, float scale,
                                    size_t n) {
    cpu.for_rows(n, 1, [&](size_t from, size_t to) {
        by_fours(to - from, [&](size_t j, size_t width) {
            size_t i = from + j;
            store(out + i, (load(a + i, width) - load(b + i, width)) * scale, width);
        });
    });
}

void CpuBackward::add(float* out, const float* x, size_t n) {
    cpu.for_rows(n, 1, [&](size_t from, size_t to) {
        by_fours(to - from, [&](size_t j, size_t width) {
            size_t i = from + j;
            store(out + i, load(out + i, width) + load(x + i, width), width);
        });
    });
}

void CpuBackward::add_grams(std::span<const Gram> all) {
    threads.run(all.size(), [&](size_t i) {
        const Gram& one = all[i];
        size_t d = size_t(one.d);
        add_gram(*one.sum, one.A, d, one.B, d, size_t(one.rows));
    });
}

void CpuBackward::cayley(std::span<const Turn> all) {
    threads.run(all.size(), [&](size_t i) {
        const Turn& one = all[i];
        *one.Q = stief::cayley(*one.Q, *one.W, one.tau);
    });
}

}  // namespace stief
