// The cache's rows, and decode attention: out_h = softmax(q_h Kᵀ / √d) V, one query row per head, of
// one token or of several that are to come out as each alone would.
// Positions are split over threads and merged by their running max and sum (Dao et al. 2023,
// Flash-Decoding). A piece is (kv head, split): it reads K and V once, S·(r_K + r_V)·2 bytes in
// all, and shares every row over the m query heads of the group.
//
// Of q the first r_K coordinates meet the row's r_K; of out the first r_V are written and the rest
// are zero: what is not kept counts as zero. The scale is 1/√d at any rank.
//
// The bytes are few, so arithmetic must be too. Keys before rotation are rebuilt in blocks that
// stay in the nearest cache and are turned in registers on their way into the scores
// (turned_scores). At r = 16 of d = 64 with m = 4 a position costs 64 bytes, 2,000 operations of
// the matrix unit (6,000 in two bf16) and 700 of the vector unit: that unit is the bound.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/rebuilt_keys.h"

namespace stief {

// Positions of a piece. A scan of memory needs some length to come up to speed, and a low rank's
// rows are short; still there are 8 pieces a head where the context is long enough to matter. Sums
// do not depend on threads: only S decides.
static int split_of(int S) {
    return std::clamp(S / 8 / 256 * 256, 256, 1024);
}

// p (m, stride) ← q · k̃ of one split's positions, keys rebuilt. keys: scratch for (BLOCK, d).
static void rebuilt_scores(const CpuBackend& cpu, float* p, size_t stride, const float* q,
                           float* keys, const float* rotation, const RebuiltKeys& rebuilt,
                           const Run& run) {
    const Kernels& kernels = cpu.kernels;
    const CacheLayer& cache = rebuilt.cache;
    int m = cache.H / cache.G;
    size_t d = size_t(cache.d), row = size_t(run.r) * size_of(cache.dtype);
    for (int s = 0; s < run.count; s += RebuiltKeys::BLOCK) {
        int count = std::min(RebuiltKeys::BLOCK, run.count - s);
        const float* angle = rotation + size_t(run.first + s) * d;
        rebuilt.rebuild(keys, {run.first + s, count, run.rows + size_t(s) * row, run.r});
        if (!cpu.exact) {
            kernels.turned_scores(p + s, stride, q, d, keys, angle, m, count, d / 2);
            continue;
        }
        for (size_t i = 0; i < size_t(count); i++)
            kernels.rotate(keys + i * d, angle + i * d, d / 2);
        kernels.scores[int(DType::F32)](p + s, stride, q, d, keys, m, count, cache.d);
    }
}

// partial ← for each of m heads: max, Σ e^(s − max), Σ e^(s − max) ṽ  over one split's positions.
static void attend_split(const CpuBackend& cpu, float* partial, size_t stride, const float* q,
                         const float* rotation, const CacheLayer& cache, int g, int first,
                         int count, int pos) {
    const Kernels& kernels = cpu.kernels;
    const CacheRows& k = cache.k[size_t(g)];
    int m = cache.H / cache.G;
    size_t d = size_t(cache.d), queries = size_t(m) * d, p_stride = (size_t(count) + 15) / 16 * 16;
    size_t keys = RebuiltKeys::BLOCK * d, floats = (queries + 15) / 16 * 16 + size_t(m) * p_stride;
    size_t more = cache.rotated ? 0 : keys * 4 + RebuiltKeys::bytes(cpu, cache, k);
    char* scratch = thread_scratch(floats * 4 + more);
    float *p = reinterpret_cast<float*>(scratch), *scaled = p + size_t(m) * p_stride;
    float scale = float(1.0 / std::sqrt(double(d)));
    for (size_t i = 0; i < queries; i++) scaled[i] = q[i] * scale;

    if (cache.rotated) {
        for_runs(cache, k, first, first + count, pos, [&](const Run& run) {
            kernels.scores[int(cache.dtype)](p + (run.first - first), p_stride, scaled, d,
                                             run.rows, m, run.count, run.r);
        });
    } else {
        char* after = scratch + floats * 4;
        RebuiltKeys rebuilt(cpu, cache, k, after + keys * 4);
        for_runs(cache, k, first, first + count, pos, [&](const Run& run) {
            rebuilt_scores(cpu, p + (run.first - first), p_stride, scaled,
                           reinterpret_cast<float*>(after), rotation, rebuilt, run);
        });
    }
    for (int h = 0; h < m; h++) {
        float *one = partial + size_t(h) * stride, *s = p + size_t(h) * p_stride;
        one[0] = kernels.largest(s, size_t(count));
        one[1] = kernels.exp_sum(s, size_t(count), one[0]);
        std::fill(one + 2, one + stride, 0.0f);
    }
    for_runs(cache, cache.v[size_t(g)], first, first + count, pos, [&](const Run& run) {
        kernels.accumulate[int(cache.dtype)](partial + 2, stride, p + (run.first - first), p_stride,
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

// Tokens whose positions are split alike. A split's rows stay in the second cache while all of them
// read it, each as if it were alone: its own count of positions decides the order of every sum.
void CpuBackend::attend_alike(float* out, const float* q, const float* rotation,
                              const CacheLayer& cache, const Step& step) {
    int m = cache.H / cache.G, split = split_of(step.pos + 1), T = step.T;
    int splits = (step.pos + T + split - 1) / split;
    size_t G = size_t(cache.G), d = size_t(cache.d), stride = d + 2, H = size_t(cache.H);
    size_t between = H * stride, width = H * d, each = size_t(splits) * between;
    partials.resize(size_t(T) * each);
    constexpr int TOGETHER = 8;  // tokens of a piece: enough pieces where there are few splits
    size_t groups = size_t((T + TOGETHER - 1) / TOGETHER);
    threads.run(size_t(splits) * G * groups, [&](size_t piece) {
        int t = int(piece % groups) * TOGETHER, end = std::min(T, t + TOGETHER);
        int g = int(piece / groups % G), i = int(piece / groups / G), first = i * split;
        for (; t < end; t++) {
            int S = step.pos + t + 1;
            if (first >= S) continue;
            float* partial =
                partials.data() + size_t(t) * each + size_t(i) * between + size_t(g * m) * stride;
            attend_split(*this, partial, stride, q + size_t(t) * width + size_t(g * m) * d,
                         rotation, cache, g, first, std::min(split, S - first), S - 1);
        }
    });
    for_rows(size_t(T) * H, size_t(splits) * d, [&](size_t first, size_t end) {
        for (size_t row = first; row < end; row++) {
            size_t t = row / H, h = row % H;
            const CacheRows& head = cache.v[h / size_t(m)];
            merge_splits(out + row * d, partials.data() + t * each + h * stride, between,
                         (step.pos + int(t) + split) / split, head.exact ? cache.d : head.r,
                         cache.d);
        }
    });
}

void CpuBackend::attend_singly(float* out, const float* q, const float* rotation,
                               const CacheLayer& cache, const Step& step) {
    size_t width = size_t(cache.H) * size_t(cache.d);
    for (int t = 0, end; t < step.T; t = end) {
        int split = split_of(step.pos + t + 1);
        for (end = t + 1; end < step.T && split_of(step.pos + end + 1) == split;) end++;
        attend_alike(out + size_t(t) * width, q + size_t(t) * width, rotation, cache,
                     {step.pos + t, end - t});
    }
}

}  // namespace stief
