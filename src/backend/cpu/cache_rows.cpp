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

void CpuBackend::prepare(const CacheLayer& cache) {
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
    prepare(cache);
    if (rotation) rope(q, cache.rotated ? k : nullptr, rotation, q ? cache.H : 0, cache.G, cache.d, step);
    size_t d = size_t(cache.d), width = size_t(cache.G) * d, values = size_t(cache.values_width());

    // x: of n columns; latent: (count, values + d)
    auto store = [&](const CacheRows& head, const float* x, int n, int pos, int count,
                     float* latent) {
        size_t stride = width;
        if (head.mean) {
            float* centred = latent + size_t(count) * values;
            for (size_t t = 0; t < size_t(count); t++)
                for (size_t i = 0; i < d; i++) centred[t * d + i] = x[t * stride + i] - head.mean[i];
            x = centred, stride = d;
        }
        if (head.encode) {
            head_product(kernels, latent, size_t(n), x, stride, head.encode, count, n, n);
            x = latent, stride = size_t(n);
        }
        for (const RowStore& one : head.store)
            if (one.data)
                for_runs(one, pos, pos + count, [&](const Run& run) {
                    pack(*this, run, x + size_t(run.first - pos) * stride, stride, head.weight,
                         cache.dtype);
                });
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
                store(cache.v[0], v + first * width, cache.joint, pos, count, scratch);
                continue;
            }
            store(cache.k[g], k + first * width + g * d, cache.d, pos, count, scratch);
            if (cache.joint) continue;
            store(cache.v[g], v + first * width + g * d, cache.d, pos, count, scratch);
        }
    });
}

// q_h Dᵀ: queries in the coordinates of their group's keys; q itself where those are the plain
// ones. Keys that are rebuilt are met by q as it is.
const float* CpuBackend::latent_queries(const float* q, const CacheLayer& cache, int T) {
    if (!cache.rotated || !cache.k[0].decode_t) return q;
    size_t d = size_t(cache.d), width = size_t(cache.H) * d, m = size_t(cache.H / cache.G);
    latents.resize(size_t(T) * width);
    for_heads(size_t(T), size_t(cache.H), d * d,
              [&](size_t first, size_t end, size_t h, size_t h_end) {
        for (; h < h_end; h++)
            head_product(kernels, latents.data() + first * width + h * d, width,
                         q + first * width + h * d, width, cache.k[h / m].decode_t,
                         int(end - first), cache.d, cache.d);
    });
    return latents.data();
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
    prepare(cache);
    const float* queries = latent_queries(q, cache, step.T);
    float* latent = out.data;
    if (cache.joint) {
        joint_latents.resize(size_t(step.T) * size_t(cache.H) * size_t(cache.joint));
        latent = joint_latents.data();
    }
    if (step.T == 1 || singly)
        attend_singly(latent, queries, rotation, cache, step);
    else if (step.T > 1)
        attend_tiles(latent, queries, rotation, cache, step);
    decode_values(out.data, latent, cache, step.T);
}

}  // namespace stief
