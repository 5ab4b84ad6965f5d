// The score of predicted tokens: their loss under one or two models, and how far the two diverge.
// Twin: cuda/score.cu.
#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backend.h"

namespace stief {

namespace {

// softmax(z)_j = e^(z_j − most) / sum
struct Row {
    size_t top = 0;  // the first of the largest
    float most = 0;
    double sum = 0, log_sum = 0;  // ln Σ e^z
};

Row read_row(const Kernels& kernels, const float* z, size_t V) {
    constexpr size_t BLOCK = 1024;
    Row row;
    row.most = -INFINITY;
    for (size_t at = 0; at < V; at += BLOCK) {
        size_t n = std::min(BLOCK, V - at);
        float most = kernels.largest(z + at, n);
        if (most > row.most) row.most = most, row.top = at;
    }
    size_t end = std::min(row.top + BLOCK, V);  // of its block
    row.top = size_t(std::find(z + row.top, z + end, row.most) - z) % V;  // 0 where all are NaN
    row.sum = kernels.exp_total(z, V, row.most);
    row.log_sum = double(row.most) + std::log(row.sum);
    return row;
}

double divergence_of(const Kernels& kernels, const float* zp, const Row& p, const float* zq,
                     const Row& q, size_t V) {
    return kernels.divergence(zp, zq, V,
                              {p.most, q.most, float(1 / p.sum), float(1 / q.sum),
                               float(std::log(q.sum) - std::log(p.sum))});
}

}  // namespace

void CpuBackend::score(RowScore* out, const float* logits, const float* full, const int32_t* next,
                       int rows, int V) {
    size_t n = size_t(V);
    threads.run(size_t(rows), [&](size_t i) {
        const float* zq = logits + i * n;
        Row q = read_row(kernels, zq, n);
        out[i] = {};
        out[i].loss = q.log_sum - double(zq[next[i]]);
        if (!full) return;
        const float* zp = full + i * n;
        Row p = read_row(kernels, zp, n);
        out[i].loss_full = p.log_sum - double(zp[next[i]]);
        out[i].divergence = divergence_of(kernels, zp, p, zq, q, n);
        out[i].same_top = p.top == q.top, out[i].top_full = int32_t(p.top);
        auto swing = [&](size_t token) {
            return (double(p.most) - zp[token]) - (double(zq[p.top]) - zq[token]);
        };
        out[i].swing = swing(q.top), out[i].swing_next = swing(size_t(next[i]));
    });
}

}  // namespace stief
