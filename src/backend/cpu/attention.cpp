// The cache's rows, and decode attention: out_h = softmax(q_h Kᵀ / √d) V, one query row per head.
// Positions are split over threads and merged by their running max and sum (Dao et al. 2023,
// Flash-Decoding). A piece is (kv head, split): it reads K and V once, S·(r_K + r_V)·2 bytes in
// all, and shares every row over the m query heads of the group.
//
// Of q the first r_K coordinates meet the row's r_K; of out the first r_V are written and the rest
// are zero: what is not kept counts as zero. The scale is 1/√d at any rank.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/cache_rows.h"

namespace stief {

constexpr int SPLIT = 256;  // positions of a piece: fixed, so that sums do not depend on threads

// p (m, SPLIT) ← q · k̃ of one split's positions; keys: scratch for 2 (SPLIT, d).
static void split_scores(const Kernels& kernels, float* p, const float* q, float* keys,
                         const float* rotation, const CacheLayer& cache, int g, int first,
                         int count, int pos) {
    const CacheRows& head = cache.k[size_t(g)];
    int m = cache.H / cache.G, d = cache.d;
    for_runs(cache, head, first, first + count, pos, [&](const Run& run) {
        float* to = p + (run.first - first);
        if (cache.rotated) {
            kernels.scores[int(cache.dtype)](to, SPLIT, q, size_t(d), run.rows, m, run.count,
                                             run.r);
            return;
        }
        float* latent = keys + size_t(SPLIT) * size_t(d);
        rebuild_keys(kernels, keys, latent, run, cache, head, rotation);
        kernels.scores[int(DType::F32)](to, SPLIT, q, size_t(d), keys, m, run.count, d);
    });
}

// partial ← for each of m heads: max, Σ e^(s − max), Σ e^(s − max) ṽ  over one split's positions.
static void attend_split(const Kernels& kernels, float* partial, size_t stride, const float* q,
                         const float* rotation, const CacheLayer& cache, int g, int first,
                         int count, int pos) {
    int m = cache.H / cache.G;
    size_t d = size_t(cache.d), queries = size_t(m) * d,
           rebuilt = cache.rotated ? 0 : 2 * SPLIT * d;
    float* scaled =
        reinterpret_cast<float*>(thread_scratch((queries + size_t(m) * SPLIT + rebuilt) * 4));
    float *p = scaled + queries, *keys = p + size_t(m) * SPLIT;
    float scale = float(1.0 / std::sqrt(double(d)));
    for (size_t i = 0; i < queries; i++) scaled[i] = q[i] * scale;

    split_scores(kernels, p, scaled, keys, rotation, cache, g, first, count, pos);
    for (int h = 0; h < m; h++) {
        float *one = partial + size_t(h) * stride, *s = p + size_t(h) * SPLIT;
        one[0] = kernels.largest(s, size_t(count));
        one[1] = kernels.exp_sum(s, size_t(count), one[0]);
        std::fill(one + 2, one + stride, 0.0f);
    }
    for_runs(cache, cache.v[size_t(g)], first, first + count, pos, [&](const Run& run) {
        kernels.accumulate[int(cache.dtype)](partial + 2, stride, p + (run.first - first), SPLIT,
                                             run.rows, m, run.count, run.r);
    });
}

// out ← Σ_i e^(max_i − max) acc_i / Σ_i e^(max_i − max) sum_i over the splits of one head.
static void merge_splits(float* out, const float* partial, size_t between, int splits, int r,
                         int d) {
    float most = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < splits; i++) most = std::max(most, partial[size_t(i) * between]);
    std::fill(out, out + d, 0.0f);
    float sum = 0;
    for (int i = 0; i < splits; i++, partial += between) {
        float weight = std::exp(partial[0] - most);
        sum += weight * partial[1];
        for (int j = 0; j < r; j++) out[j] += weight * partial[2 + j];
    }
    for (int j = 0; j < r; j++) out[j] /= sum;
}

void CpuBackend::attend_one(float* out, const float* q, const float* rotation,
                            const CacheLayer& cache, int S) {
    int m = cache.H / cache.G, splits = (S + SPLIT - 1) / SPLIT;
    size_t G = size_t(cache.G), d = size_t(cache.d), stride = d + 2, H = size_t(cache.H);
    partials.resize(size_t(splits) * H * stride);
    threads.run(size_t(splits) * G, [&](size_t piece) {
        int g = int(piece % G), first = int(piece / G) * SPLIT;
        float* partial = partials.data() + ((piece / G) * H + size_t(g * m)) * stride;
        attend_split(kernels, partial, stride, q + size_t(g * m) * d, rotation, cache, g, first,
                     std::min(SPLIT, S - first), S - 1);
    });
    for_rows(H, size_t(splits) * d, [&](size_t first, size_t end) {
        for (size_t h = first; h < end; h++) {
            const CacheRows& head = cache.v[h / size_t(m)];
            merge_splits(out + h * d, partials.data() + h * stride, H * stride, splits,
                         head.exact ? cache.d : head.r, cache.d);
        }
    });
}

}  // namespace stief
