// Copies and sums over activations, the score of predicted tokens, and the turn of the bases.
// Twins: cuda/backward_sums.cu, cuda/cayley.cu.
#include <algorithm>
#include <cmath>

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

namespace {

// ln Σ e^z and the index of the largest.
struct Row {
    double log_sum;
    size_t top;
};

// Sums of at most 1024 terms in float, those in double: V = 128,256 terms.
template <class F>
double blocked_sum(size_t n, const F& term) {
    double total = 0;
    for (size_t begin = 0; begin < n; begin += 1024) {
        Four sums = {};
        size_t count = std::min<size_t>(1024, n - begin);
        by_fours(count, [&](size_t i, size_t width) {
            Four one = term(begin + i, width);
            for (size_t j = width; j < 4; j++) one[j] = 0;
            sums += one;
        });
        total += double(sum(sums));
    }
    return total;
}

Row read_row(const float* z, size_t V) {
    size_t top = size_t(std::max_element(z, z + V) - z);
    float most = z[top];
    double sum =
        blocked_sum(V, [&](size_t i, size_t width) { return exp(load(z + i, width) - most); });
    return {double(most) + std::log(sum), top};
}

// Σ p (ln p − ln q) = Σ p (z_p − z_q) − (ln Σ e^z_p − ln Σ e^z_q)
double divergence_of(const float* zp, const Row& p, const float* zq, const Row& q, size_t V) {
    float log_sum = float(p.log_sum);
    double sum = blocked_sum(V, [&](size_t i, size_t width) {
        Four a = load(zp + i, width);
        return exp(a - log_sum) * (a - load(zq + i, width));
    });
    return std::max(0.0, sum - p.log_sum + q.log_sum);
}

}  // namespace

void CpuBackward::score(RowScore* out, const float* logits, const float* full, const int32_t* next,
                        int rows, int V) {
    size_t n = size_t(V);
    threads.run(size_t(rows), [&](size_t i) {
        const float *zq = logits + i * n, *zp = full + i * n;
        Row q = read_row(zq, n), p = read_row(zp, n);
        out[i] = {q.log_sum - double(zq[next[i]]), p.log_sum - double(zp[next[i]]),
                  divergence_of(zp, p, zq, q, n), p.top == q.top};
    });
}

void CpuBackward::score_direction(float* z, uint64_t seed, int rows, int V) {
    size_t n = size_t(V);
    threads.run(size_t(rows), [&](size_t row) {
        float* at = z + row * n;
        float half = float(0.5 * read_row(at, n).log_sum);
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

void CpuBackward::cayley(std::span<const Turn> all) {
    threads.run(all.size(), [&](size_t i) {
        const Turn& one = all[i];
        *one.Q = stief::cayley(*one.Q, *one.W, one.tau);
    });
}

}  // namespace stief
