// The cache's rows, and decode attention: out_h = softmax(q_h Kᵀ / √d) V, one query row per head.
// Positions are split over threads and merged by their running max and sum (Dao et al. 2023,
// Flash-Decoding). A piece is (kv head, split): it reads K and V once, S·(r_K + r_V)·2 bytes in all,
// and shares every row over the m query heads of the group.
//
// Of q the first r_K coordinates meet the row's r_K; of out the first r_V are written and the rest are
// zero: what is not kept counts as zero. The scale is 1/√d at any rank.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/cpu_backend.h"

namespace stief {

void CpuBackend::append(const CacheLayer& cache, const float* k, const float* v, const Step& step) {
    size_t width = size_t(cache.G) * size_t(cache.d);
    check(step.pos + step.T <= cache.capacity, "position %d does not fit a cache of %d",
          step.pos + step.T - 1, cache.capacity);
    for_rows(size_t(step.T), 2 * width, [&](size_t first, size_t end) {
        auto store = [&](const CacheRows& head, const float* row, size_t t) {
            size_t at = (size_t(step.pos) + t) * size_t(head.r) * size_of(cache.dtype);
            kernels.narrow[int(cache.dtype)](static_cast<char*>(head.data) + at, row, size_t(head.r));
        };
        for (size_t t = first; t < end; t++)
            for (size_t g = 0; g < size_t(cache.G); g++) {
                size_t row = t * width + g * size_t(cache.d);
                store(cache.k[g], k + row, t);
                store(cache.v[g], v + row, t);
            }
    });
}

void CpuBackend::attend(float* out, const float* q, const CacheLayer& cache, const Step& step) {
    if (step.T == 1) attend_one(out, q, cache, step.pos + 1);
    else if (step.T > 1) attend_tiles(out, q, cache, step);
}

constexpr int SPLIT = 256;      // positions of a piece: fixed, so that sums do not depend on threads

// partial ← for each of m heads: max, Σ e^(s − max), Σ e^(s − max) v  over one split's positions.
static void attend_split(const Kernels& kernels, float* partial, size_t stride, const float* q,
                         const CacheLayer& cache, int g, int first, int count) {
    const CacheRows &k = cache.k[size_t(g)], &v = cache.v[size_t(g)];
    int m = cache.H / cache.G, d = cache.d, type = int(cache.dtype);
    size_t element = size_of(cache.dtype), queries = size_t(m) * size_t(d);
    float* scaled = reinterpret_cast<float*>(thread_scratch((queries + size_t(m) * SPLIT) * 4));
    float* p = scaled + queries;
    float scale = float(1.0 / std::sqrt(double(d)));
    for (size_t i = 0; i < queries; i++) scaled[i] = q[i] * scale;

    auto row = [&](const CacheRows& head) {
        return static_cast<const char*>(head.data) + size_t(first) * size_t(head.r) * element;
    };
    kernels.scores[type](p, SPLIT, scaled, size_t(d), row(k), m, count, k.r);
    for (int h = 0; h < m; h++) {
        float *one = partial + size_t(h) * stride, *s = p + size_t(h) * SPLIT;
        one[0] = kernels.largest(s, size_t(count));
        one[1] = kernels.exp_sum(s, size_t(count), one[0]);
        std::fill(one + 2, one + stride, 0.0f);
    }
    kernels.accumulate[type](partial + 2, stride, p, SPLIT, row(v), m, count, v.r);
}

// out ← Σ_i e^(max_i − max) acc_i / Σ_i e^(max_i − max) sum_i over the splits of one head.
static void merge_splits(float* out, const float* partial, size_t between, int splits, int r, int d) {
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

void CpuBackend::attend_one(float* out, const float* q, const CacheLayer& cache, int S) {
    int m = cache.H / cache.G, splits = (S + SPLIT - 1) / SPLIT;
    size_t G = size_t(cache.G), d = size_t(cache.d), stride = d + 2, H = size_t(cache.H);
    partials.resize(size_t(splits) * H * stride);
    threads.run(size_t(splits) * G, [&](size_t piece) {
        int g = int(piece % G), first = int(piece / G) * SPLIT;
        float* partial = partials.data() + ((piece / G) * H + size_t(g * m)) * stride;
        attend_split(kernels, partial, stride, q + size_t(g * m) * d, cache, g, first,
                     std::min(SPLIT, S - first));
    });
    for_rows(H, size_t(splits) * d, [&](size_t first, size_t end) {
        for (size_t h = first; h < end; h++)
            merge_splits(out + h * d, partials.data() + h * stride, H * stride, splits,
                         cache.v[h / size_t(m)].r, cache.d);
    });
}

}  // namespace stief
