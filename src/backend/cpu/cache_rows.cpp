#include "backend/cpu/cache_rows.h"

namespace stief {

void head_product(const Kernels& kernels, float* out, size_t out_stride, const float* x,
                  size_t x_stride, const float* M, int T, int n, int k) {
    for (int c = 0; c < n; c += kernels.lanes)
        kernels.product(out + c, out_stride, x, x_stride, M + c, size_t(n), T,
                        std::min(kernels.lanes, n - c), k, false);
}

void CpuBackend::append(const CacheLayer& cache, const float* k, const float* v, const Step& step) {
    check(step.pos + step.T <= cache.capacity, "position %d does not fit a cache of %d",
          step.pos + step.T - 1, cache.capacity);
    check(cache.ring == 0 || step.T <= cache.ring - cache.recent,
          "%d tokens at once do not fit the exact window's ring", step.T);
    size_t d = size_t(cache.d), width = size_t(cache.G) * d, element = size_of(cache.dtype);
    auto narrow = kernels.narrow[int(cache.dtype)];

    auto store = [&](const CacheRows& head, const float* x, int pos, int count, float* coded) {
        size_t stride = width;
        if (head.encode) {
            head_product(kernels, coded, d, x, width, head.encode, count, cache.d, cache.d);
            x = coded, stride = d;
        }
        for_cut_runs(cache, head, pos, pos + count, [&](const Run& run) {
            for (int t = 0; t < run.count; t++)
                narrow(const_cast<char*>(run.rows) + size_t(t) * size_t(run.r) * element,
                       x + size_t(t) * stride, size_t(run.r));
        });
        if (!head.exact) return;
        for_exact_runs(cache, head, pos, pos + count, [&](const Run& run) {
            for (int t = 0; t < run.count; t++)
                narrow(const_cast<char*>(run.rows) + size_t(t) * d * element,
                       x + size_t(run.first - pos + t) * stride, d);
        });
    };

    bool coded = cache.k[0].encode != nullptr;
    size_t cost = coded ? 2 * width * d : 2 * width;
    for_rows(size_t(step.T), cost, [&](size_t first, size_t end) {
        int pos = step.pos + int(first), count = int(end - first);
        float* scratch =
            coded ? reinterpret_cast<float*>(thread_scratch(size_t(count) * d * 4)) : nullptr;
        for (size_t g = 0; g < size_t(cache.G); g++) {
            store(cache.k[g], k + first * width + g * d, pos, count, scratch);
            store(cache.v[g], v + first * width + g * d, pos, count, scratch);
        }
    });
}

// q_h Dᵀ: queries in the coordinates of their group's keys; q itself where those are the plain
// ones. Keys that are rebuilt are met by q as it is.
const float* CpuBackend::latent_queries(const float* q, const CacheLayer& cache, int T) {
    if (!cache.rotated || !cache.k[0].decode_t) return q;
    size_t d = size_t(cache.d), width = size_t(cache.H) * d, m = size_t(cache.H / cache.G);
    latents.resize(size_t(T) * width);
    for_rows(size_t(T), width * d, [&](size_t first, size_t end) {
        for (size_t h = 0; h < size_t(cache.H); h++)
            head_product(kernels, latents.data() + first * width + h * d, width,
                         q + first * width + h * d, width, cache.k[h / m].decode_t,
                         int(end - first), cache.d, cache.d);
    });
    return latents.data();
}

// out_h ← out_h D of its group's values, in place.
void CpuBackend::decode_values(float* out, const CacheLayer& cache, int T) {
    if (!cache.v[0].decode) return;
    size_t d = size_t(cache.d), width = size_t(cache.H) * d, m = size_t(cache.H / cache.G);
    for_rows(size_t(T), width * d, [&](size_t first, size_t end) {
        float* decoded = reinterpret_cast<float*>(thread_scratch((end - first) * d * 4));
        for (size_t h = 0; h < size_t(cache.H); h++) {
            const CacheRows& head = cache.v[h / m];
            float* from = out + first * width + h * d;
            head_product(kernels, decoded, d, from, width, head.decode, int(end - first), cache.d,
                         head.exact ? cache.d : head.r);
            for (size_t t = 0; t < end - first; t++)
                std::copy(decoded + t * d, decoded + (t + 1) * d, from + t * width);
        }
    });
}

void CpuBackend::attend(float* out, const float* q, const float* rotation, const CacheLayer& cache,
                        const Step& step) {
    const float* queries = latent_queries(q, cache, step.T);
    if (step.T == 1 || singly)
        attend_singly(out, queries, rotation, cache, step);
    else if (step.T > 1)
        attend_tiles(out, queries, rotation, cache, step);
    decode_values(out, cache, step.T);
}

}  // namespace stief
