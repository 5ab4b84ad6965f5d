// The cache's rows: append encodes and packs; attend takes queries to latent coordinates and values
// out of them. Twin: cuda/cache_rows.cu.
#include "backend/cpu/cache_rows.h"

namespace stief {

void head_product(const Kernels& kernels, float* out, size_t out_stride, const float* x,
                  size_t x_stride, const float* M, int T, int n, int k) {
    for (int c = 0; c < n; c += kernels.lanes)
        kernels.product(out + c, out_stride, x, x_stride, M + c, size_t(n), T,
                        std::min(kernels.lanes, n - c), k, false);
}

void CpuBackend::prepare_rows(const CacheLayer& cache) {
    for (const std::vector<CacheRows>* side : {&cache.k, &cache.v})
        for (const CacheRows& head : *side)
            for (const RowStore& store : head.store)
                if (!store.format.is_whole()) layout(store.format, cache.dtype);
}

void unpack(const CpuBackend& cpu, float* out, size_t stride, const Run& run, DType dtype) {
    const RowFormat& format = run.store.format;
    size_t kept = size_t(format.kept()), bytes = size_t(run.store.bytes);
    if (!format.is_whole())
        cpu.kernels.unpack_rows(out, stride, run.rows, cpu.layout(format, dtype), run.count);
    else if (stride == kept)
        cpu.kernels.widen[int(dtype)](out, run.rows, size_t(run.count) * kept);
    else
        for (size_t s = 0; s < size_t(run.count); s++)
            cpu.kernels.widen[int(dtype)](out + s * stride, run.rows + s * bytes, kept);
}

// run ← x (count, stride) in the format of its store
static void pack(const CpuBackend& cpu, const Run& run, const float* x, size_t stride,
                 const float* weight, DType dtype) {
    const RowFormat& format = run.store.format;
    if (!format.is_whole()) {
        const RowLayout& layout = cpu.layout(format, dtype);
        return cpu.kernels.pack_rows(run.rows, x, stride, weight, layout, run.count);
    }
    for (size_t t = 0; t < size_t(run.count); t++)
        cpu.kernels.narrow[int(dtype)](run.rows + t * size_t(run.store.bytes), x + t * stride,
                                       size_t(format.kept()));
}

void CpuBackend::append(const CacheLayer& cache, float* q, float* k, const float* v,
                        const float* rotation, const Step& step) {
    check(step.pos + step.T <= cache.capacity, "position %d does not fit a cache of %d",
          step.pos + step.T - 1, cache.capacity);
    check(cache.batch == 0 || step.T <= cache.batch,
          "%d tokens at once do not fit the rings of a cache for %d", step.T, cache.batch);
    prepare_rows(cache);
    if (rotation && q) rope(q, rotation, cache.H, cache.d, step);
    if (rotation && cache.rotated) rope(k, rotation, cache.G, cache.d, step);
    size_t d = size_t(cache.d), width = size_t(cache.G) * d, values = size_t(cache.values_width());

    // centred (count, d) ← x − μ, or − R_s μ
    auto centre = [&](float* centred, const CacheRows& head, const float* x, int pos, int count) {
        for (size_t t = 0; t < size_t(count); t++, centred += d, x += width) {
            std::copy(head.mean, head.mean + d, centred);
            if (cache.rotated)
                kernels.rotate(centred, rotation + (size_t(pos) + t) * d, d / 2);
            for (size_t i = 0; i < d; i++) centred[i] = x[i] - centred[i];
        }
    };
    // x: of n columns; latent: (count, n)
    auto store = [&](const CacheRows& head, const float* x, size_t stride, int n, int pos, int count,
                     float* latent, auto takes) {
        if (std::none_of(head.store, head.store + MOST_STORES,
                         [&](const RowStore& one) { return one.data && takes(one.format); }))
            return;
        if (head.encode) {
            head_product(kernels, latent, size_t(n), x, stride, head.encode, count, n, n);
            x = latent, stride = size_t(n);
        }
        for (const RowStore& one : head.store)
            if (one.data && takes(one.format))
                for_runs(one, pos, pos + count, [&](const Run& run) {
                    pack(*this, run, x + size_t(run.first - pos) * stride, stride, head.weight,
                         cache.dtype);
                });
    };
    auto any = [](const RowFormat&) { return true; };
    auto store_keys = [&](size_t g, const float* x, int pos, int count, float* latent) {
        const CacheRows& head = cache.k[g];
        bool comes_so = cache.rotated && !rotation;  // less its mean
        if (!head.mean || comes_so) return store(head, x, width, cache.d, pos, count, latent, any);
        float* centred = latent + size_t(count) * values;
        centre(centred, head, x, pos, count);
        if (!cache.rotated) return store(head, centred, d, cache.d, pos, count, latent, any);
        store(head, x, width, cache.d, pos, count, latent,
              [&](const RowFormat& format) { return format.keeps_all(cache.d); });
        store(head, centred, d, cache.d, pos, count, latent,
              [&](const RowFormat& format) { return !format.keeps_all(cache.d); });
    };

    bool latent = cache.k[0].encode != nullptr;
    size_t cost = latent ? 2 * (d * d + values * values) : 2 * d;  // products, search of the scales
    // Joint values are one head more.
    for_heads(size_t(step.T), size_t(cache.G + (cache.joint > 0)), cost,
              [&](size_t first, size_t end, size_t g, size_t g_end) {
        int pos = step.pos + int(first), count = int(end - first);
        float* scratch =
            latent ? reinterpret_cast<float*>(thread_scratch(size_t(count) * (values + d) * 4))
                   : nullptr;
        for (; g < g_end; g++) {
            if (g == size_t(cache.G)) {
                store(cache.v[0], v + first * width, width, cache.joint, pos, count, scratch, any);
                continue;
            }
            store_keys(g, k + first * width + g * d, pos, count, scratch);
            if (cache.joint) continue;
            store(cache.v[g], v + first * width + g * d, width, cache.d, pos, count, scratch, any);
        }
    });
}

// Queries as the rows of keys meet them: q_h Dᵀ, or q itself where those are the plain coordinates.
// Keys that are rebuilt are met by q as it is. And where coded keys are less R_s μ, pairs (j, j + d/2)
//     w_j = q_j μ_j + q_{j+d/2} μ_{j+d/2},  w_{j+d/2} = q_{j+d/2} μ_j − q_j μ_{j+d/2},
// since q · R_s μ = w · (cos, sin) of position s: calibrate/README.md (22).
Queries CpuBackend::turn_queries(const float* q, const CacheLayer& cache, int T) {
    if (!cache.rotated || !cache.k[0].decode_t) return {q, nullptr};
    size_t d = size_t(cache.d), half = d / 2, width = size_t(cache.H) * d, m = size_t(cache.H / cache.G);
    bool less = false;
    for (size_t g = 0; g < size_t(cache.G); g++) less |= cache.less_turned_mean(g);
    latents.resize(size_t(T) * width);
    if (less) against_means.resize(size_t(T) * width);
    for_heads(size_t(T), size_t(cache.H), d * d,
              [&](size_t first, size_t end, size_t h, size_t h_end) {
        for (; h < h_end; h++) {
            const CacheRows& head = cache.k[h / m];
            size_t at = first * width + h * d;
            head_product(kernels, latents.data() + at, width, q + at, width, head.decode_t,
                         int(end - first), cache.d, cache.d);
            if (!head.mean) continue;
            const float *mean = head.mean, *from = q + at;
            float* w = against_means.data() + at;
            for (size_t t = first; t < end; t++, from += width, w += width)
                for (size_t j = 0; j < half; j++) {
                    w[j] = from[j] * mean[j] + from[j + half] * mean[j + half];
                    w[j + half] = from[j + half] * mean[j] - from[j] * mean[j + half];
                }
        }
    });
    return {latents.data(), less ? against_means.data() : nullptr};
}

// out_h ← latent_h D of its group's values; out and latent may be the same.
void CpuBackend::decode_values(float* out, const float* latent, const CacheLayer& cache, int T) {
    if (!cache.v[0].decode) return;
    size_t d = size_t(cache.d), width = size_t(cache.H) * d, m = size_t(cache.H / cache.G);
    size_t values = size_t(cache.values_width()), latents_width = size_t(cache.H) * values;
    for_heads(size_t(T), size_t(cache.H), values * d,
              [&](size_t first, size_t end, size_t h, size_t h_end) {
        float* decoded = reinterpret_cast<float*>(thread_scratch((end - first) * d * 4));
        for (; h < h_end; h++) {
            const CacheRows& head = cache.v[h / m];
            float* to = out + first * width + h * d;
            const float* from = latent + first * latents_width + h * values;
            head_product(kernels, decoded, d, from, latents_width, head.decode, int(end - first),
                         cache.d, head.width);
            for (size_t t = 0; t < end - first; t++)
                std::copy(decoded + t * d, decoded + (t + 1) * d, to + t * width);
        }
    });
}

void CpuBackend::attend(Operand out, const float* q, const float* rotation, const CacheLayer& cache,
                        const Step& step) {
    bool one_by_one = step.T == 1 || singly;
    int rebuilt = 0;    // heads whose keys are: key_tiles.h
    for (size_t g = 0; g < size_t(cache.G); g++)
        rebuilt += !cache.rotated || (!one_by_one && cache.less_turned_mean(g));
    prepare_rows(cache);
    if (rebuilt) prepare_keys(cache);
    Queries queries = rebuilt == cache.G ? Queries{q, nullptr} : turn_queries(q, cache, step.T);
    float* latent = out.data;
    if (cache.joint) {
        joint_latents.resize(size_t(step.T) * size_t(cache.H) * size_t(cache.joint));
        latent = joint_latents.data();
    }
    if (one_by_one) attend_singly(latent, queries, rotation, cache, step);
    else if (step.T > 1) attend_tiles(latent, q, queries.latent, rotation, cache, step);
    decode_values(out.data, latent, cache, step.T);
}

}  // namespace stief
