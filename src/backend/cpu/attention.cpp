// Decode attention over the rows of cache_rows.cpp: out_h = softmax(q_h Kᵀ / √d) V, one query row
// per head, of one token or of several that are to come out as each alone would.
// Positions are split over threads and merged by their running max and sum (Dao et al. 2023,
// Flash-Decoding). A piece is (kv head, split, up to 8 tokens): it reads what is
// stored of K and V for each token, from memory for the first alone, and shares every row over the
// m query heads of the group.
//
// A row is r elements, or codes of mixed widths (row_format.h), which the scores and sums of the
// instruction set read as they are packed; only exact arithmetic unpacks them. What such keys after
// rotation have lost, R_s μ, is a sum over the angles of positions, added where a head has one
// (angles_impl.h). Of q the first r_K coordinates meet the row's r_K; of out the first r_V are written
// and the rest are zero: what is not kept counts as zero. The scale is 1/√d at any rank.
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

// Positions whose angles turn rebuilt keys: at most 16 KB, half of the nearest cache.
static int near_positions(int d) {
    return std::clamp(4096 / d, 16, RebuiltKeys::BLOCK / 2);
}

// Rows of codes in f32 (Backend::exact), a block at a time: visit(first of the run, rows, count).
template <class Visit>
static void for_unpacked(const CpuBackend& cpu, float* rows, const Run& run, DType dtype,
                         const Visit& visit) {
    size_t kept = size_t(run.store.format.kept());
    for (int s = 0; s < run.count; s += RebuiltKeys::BLOCK) {
        int count = std::min(RebuiltKeys::BLOCK, run.count - s);
        char* from = run.rows + size_t(s) * size_t(run.store.bytes);
        unpack(cpu, rows, kept, {run.first + s, count, from, run.store}, dtype);
        visit(s, rows, count);
    }
}

// One split: the m query heads of one kv head over `count` positions from `first` on.
struct Split {
    const CpuBackend& cpu;
    const CacheLayer& cache;
    const Kernels& kernels;
    const float* rotation;
    int g, m, first, count, pos;
    size_t d, p_stride;
    float *p, *scaled, *rows;  // (m, p_stride), (m, d), (BLOCK, a row)  keys or rows as f32
    float* against_mean;       // (m, d)  scaled, too; or queries turned back
    char* rest;                // of RebuiltKeys

    Split(const CpuBackend& backend, const CacheLayer& layer, const float* turns, int group,
          int begin, int positions, int at)
        : cpu(backend),
          cache(layer),
          kernels(backend.kernels),
          rotation(turns),
          g(group),
          m(layer.H / layer.G),
          first(begin),
          count(positions),
          pos(at),
          d(size_t(layer.d)) {
        p_stride = (size_t(count) + 15) / 16 * 16;
        size_t queries = (size_t(m) * d + 15) / 16 * 16, weights = size_t(m) * p_stride;
        size_t block = needs_rows() ? RebuiltKeys::BLOCK * size_t(cache.values_width()) : 0;
        size_t more = cache.rotated ? 0 : RebuiltKeys::bytes(cpu, cache, size_t(g));
        char* scratch = thread_scratch((2 * queries + weights + block) * sizeof(float) + more);
        p = reinterpret_cast<float*>(scratch), scaled = p + weights;
        against_mean = scaled + queries, rows = against_mean + queries;
        rest = reinterpret_cast<char*>(rows + block);
    }

    const CacheRows& keys() const { return cache.k[size_t(g)]; }
    const CacheRows& values() const { return cache.v[size_t(g)]; }
    const Seen& seen() const { return cache.seen[size_t(g)]; }
    bool needs_rows() const { return !cache.rotated || cpu.exact; }

    // p ← q · k̃ of one run, keys after rotation.
    void score(const Run& run) {
        score_rows(run);
        if (!cache.less_turned_mean(size_t(g)) || run.store.format.keeps_all(cache.d)) return;
        kernels.add_angles(p + (run.first - first), p_stride, against_mean, d,
                           cpu.angle_table.angles, rotation, run.first, run.count, m, d / 2);
    }
    void score_rows(const Run& run) {
        float* to = p + (run.first - first);
        const RowFormat& format = run.store.format;
        if (format.is_whole())
            return kernels.scores[int(cache.dtype)](to, p_stride, scaled, d, run.rows, m, run.count,
                                                    format.kept());
        if (!cpu.exact)
            return kernels.coded_scores(to, p_stride, scaled, d, run.rows,
                                        cpu.layout(format, cache.dtype), m, run.count);
        for_unpacked(cpu, rows, run, cache.dtype, [&](int s, const float* c, int n) {
            kernels.scores[int(DType::F32)](to + s, p_stride, scaled, d, c, m, n, format.kept());
        });
    }

    // turned (m, d) ← queries turned back by the angles of a position: R_sᵀ (a, b) is R_s (b, a), halves
    // exchanged.
    void turn_back(float* turned, int position) const {
        const float* angle = rotation + size_t(position) * d;
        size_t half = d / 2;
        for (size_t h = 0; h < size_t(m); h++, turned += d) {
            const float* from = scaled + h * d;
            std::copy(from, from + half, turned + half);
            std::copy(from + half, from + d, turned);
            kernels.rotate(turned, angle, half);
            std::swap_ranges(turned, turned + half, turned + half);
        }
    }

    // p ← q · k̃ of one run, keys rebuilt. They are turned from a multiple of `span` on, to which queries
    // are turned back: the angles of 0 … span − 1 stay in the nearest cache.
    void score_rebuilt(const RebuiltKeys& rebuilt, const Run& run) {
        int span = near_positions(cache.d);
        for (int s = 0, n; s < run.count; s += n) {
            int at = run.first + s, near = at % span;
            n = std::min(span - near, run.count - s);
            float* to = p + (at - first);
            char* from = run.rows + size_t(s) * size_t(run.store.bytes);
            rebuilt.rebuild(rows, {at, n, from, run.store});
            if (!cpu.exact) {
                float* turned = against_mean;
                turn_back(turned, at - near);
                const float* angle = rotation + size_t(near) * d;
                kernels.turned_scores(to, p_stride, turned, d, rows, angle, m, n, d / 2);
                continue;
            }
            for (size_t i = 0; i < size_t(n); i++)
                kernels.rotate(rows + i * d, rotation + (size_t(at) + i) * d, d / 2);
            kernels.scores[int(DType::F32)](to, p_stride, scaled, d, rows, m, n, cache.d);
        }
    }

    // acc (m, stride) += p c̃ of one run.
    void accumulate(float* acc, size_t stride, const Run& run) {
        const float* from = p + (run.first - first);
        const RowFormat& format = run.store.format;
        if (format.is_whole())
            return kernels.accumulate[int(cache.dtype)](acc, stride, from, p_stride, run.rows, m,
                                                        run.count, format.kept());
        if (!cpu.exact)
            return kernels.coded_accumulate(acc, stride, from, p_stride, run.rows,
                                            cpu.layout(format, cache.dtype), m, run.count);
        for_unpacked(cpu, rows, run, cache.dtype, [&](int s, const float* c, int n) {
            kernels.accumulate[int(DType::F32)](acc, stride, from + s, p_stride, c, m, n,
                                                format.kept());
        });
    }

    template <class Visit>
    void each_run(const CacheRows& head, int Stretch::*side, const Visit& visit) {
        for_seen(seen(), head, side, first, first + count, pos, visit);
    }
};

// partial ← for each of m heads: max, Σ e^(s − max), Σ e^(s − max) c̃  over one split's positions.
static void attend_split(Split& split, float* partial, size_t stride, const Queries& q) {
    const Kernels& kernels = split.kernels;
    int m = split.m;
    size_t count = size_t(split.count);
    float scale = float(1.0 / std::sqrt(double(split.d)));
    for (size_t i = 0; i < size_t(m) * split.d; i++) split.scaled[i] = q.latent[i] * scale;
    for (size_t i = 0; q.against_mean && i < size_t(m) * split.d; i++)
        split.against_mean[i] = q.against_mean[i] * scale;

    if (split.cache.rotated) {
        split.each_run(split.keys(), &Stretch::k, [&](const Run& run) { split.score(run); });
    } else {
        RebuiltKeys rebuilt(split.cpu, split.cache, size_t(split.g), split.rest);
        split.each_run(split.keys(), &Stretch::k,
                       [&](const Run& run) { split.score_rebuilt(rebuilt, run); });
    }
    for (int h = 0; h < m; h++) {
        float *one = partial + size_t(h) * stride, *s = split.p + size_t(h) * split.p_stride;
        one[0] = kernels.largest(s, count);
        one[1] = kernels.exp_sum(s, count, one[0]);
        std::fill(one + 2, one + stride, 0.0f);
    }
    split.each_run(split.values(), &Stretch::v,
                   [&](const Run& run) { split.accumulate(partial + 2, stride, run); });
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
// out (T, H, values_width)
void CpuBackend::attend_alike(float* out, const Queries& q, const float* rotation,
                              const CacheLayer& cache, const Step& step) {
    int m = cache.H / cache.G, split = split_of(step.pos + 1), T = step.T;
    int splits = (step.pos + T + split - 1) / split;
    size_t G = size_t(cache.G), d = size_t(cache.d), H = size_t(cache.H);
    size_t values = size_t(cache.values_width()), stride = values + 2;
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
            Split one(*this, cache, rotation, g, first, std::min(split, S - first), S - 1);
            attend_split(one, partial, stride, q.from(size_t(t) * width + size_t(g * m) * d));
        }
    });
    for_rows(size_t(T) * H, size_t(splits) * values, [&](size_t first, size_t end) {
        for (size_t row = first; row < end; row++) {
            size_t t = row / H, h = row % H;
            const CacheRows& head = cache.v[h / size_t(m)];
            merge_splits(out + row * values, partials.data() + t * each + h * stride, between,
                         (step.pos + int(t) + split) / split, head.width, int(values));
        }
    });
}

void CpuBackend::attend_singly(float* out, const Queries& q, const float* rotation,
                               const CacheLayer& cache, const Step& step) {
    size_t width = size_t(cache.H) * size_t(cache.d);
    size_t values = size_t(cache.H) * size_t(cache.values_width());
    if (q.against_mean && step.pos + step.T > Angles::SPAN) angle_table.of(rotation, cache.d / 2);
    for (int t = 0, end; t < step.T; t = end) {
        int split = split_of(step.pos + t + 1);
        for (end = t + 1; end < step.T && split_of(step.pos + end + 1) == split;) end++;
        attend_alike(out + size_t(t) * values, q.from(size_t(t) * width), rotation, cache,
                     {step.pos + t, end - t});
    }
}

}  // namespace stief
