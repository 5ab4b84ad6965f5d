// The score of predicted tokens: their loss under one or two models, and how far the two diverge.
// Twin: cuda/score.cu.
#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/vectors.h"

namespace stief {

using namespace vectors;

namespace {

// softmax(z)_j = e^(z_j − most) / sum
struct Row {
    size_t top = 0;  // the first of the largest
    float most = 0;
    double sum = 0, log_sum = 0;  // ln Σ e^z
};

// Sixteen at once, so that a comparison waits for none of its neighbours'.
float largest(const float* z, size_t V, bool& damaged) {
    constexpr size_t LANES = 16;
    float most[LANES];
    int unequal[LANES] = {};  // to themselves: NaN
    std::fill_n(most, LANES, -INFINITY);
    auto take = [&](size_t lane, float x) {
        most[lane] = x > most[lane] ? x : most[lane];
        unequal[lane] |= x != x;
    };
    size_t whole = V / LANES * LANES;
    for (size_t j = 0; j < whole; j += LANES)
        for (size_t i = 0; i < LANES; i++) take(i, z[j + i]);
    for (size_t j = whole; j < V; j++) take(0, z[j]);
    damaged = std::any_of(unequal, unequal + LANES, [](int one) { return one; });
    return *std::max_element(most, most + LANES);
}

Row read_row(const float* z, size_t V) {
    Row row;
    bool damaged = false;
    row.most = largest(z, V, damaged);
    row.top = size_t(std::find(z, z + V, row.most) - z) % V;  // the first; 0 where all are NaN
    row.sum =
        blocked_sum(V, [&](size_t i, size_t width) { return exp(load(z + i, width) - row.most); });
    if (damaged) row.sum = double(NAN);
    row.log_sum = double(row.most) + std::log(row.sum);
    return row;
}

// p (e^δ − 1 − δ) = q − p − p δ; by its series where that would cancel.
Four excess(Four p, Four q, Four delta) {
    Four series = delta * (1.0f / 5040) + 1.0f / 720;
    series = series * delta + 1.0f / 120;
    series = series * delta + 1.0f / 24;
    series = series * delta + 1.0f / 6;
    series = series * delta + 0.5f;
    Four square = delta * delta;
    return square < 0.0625f ? p * square * series : q - p - p * delta;
}

double divergence_of(const float* zp, const Row& p, const float* zq, const Row& q, size_t V) {
    float shift = float(std::log(q.sum) - std::log(p.sum));
    float scale_p = float(1 / p.sum), scale_q = float(1 / q.sum);
    return blocked_sum(V, [&](size_t i, size_t width) {
        Four a = load(zp + i, width) - p.most, b = load(zq + i, width) - q.most;
        return excess(exp(a) * scale_p, exp(b) * scale_q, b - a - shift);
    });
}

}  // namespace

void CpuBackend::score(RowScore* out, const float* logits, const float* full, const int32_t* next,
                       int rows, int V) {
    size_t n = size_t(V);
    threads.run(size_t(rows), [&](size_t i) {
        const float* zq = logits + i * n;
        Row q = read_row(zq, n);
        out[i] = {};
        out[i].loss = q.log_sum - double(zq[next[i]]);
        if (!full) return;
        const float* zp = full + i * n;
        Row p = read_row(zp, n);
        out[i].loss_full = p.log_sum - double(zp[next[i]]);
        out[i].divergence = divergence_of(zp, p, zq, q, n);
        out[i].same_top = p.top == q.top, out[i].top_full = int32_t(p.top);
        auto swing = [&](size_t token) {
            return (double(p.most) - zp[token]) - (double(zq[p.top]) - zq[token]);
        };
        out[i].swing = swing(q.top), out[i].swing_next = swing(size_t(next[i]));
    });
}

}  // namespace stief
