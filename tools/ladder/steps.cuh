// The steps of the ladder: the same attention of one token over a compressed cache without an exact
// window, each step faster by one idea. Only the first is written here: the others are the
// backend's kernels, with and without what makes them fast.
#pragma once
#include "attention.cuh"

namespace stief::ladder {

constexpr int NAIVE_BLOCK = 256;  // a thread a coordinate

// One query head by itself: every key is rebuilt and rotated, every value accumulated, in f32.
// grid H, block 256. Shared: a row of latents, a key, the sums of warps. Reads the cache m times
// over and D, r·d·4 bytes, once for each key (from the first cache); H blocks are all there is.
template <class E>
__global__ void naive_kernel(float* out, CacheView cache, const float* q, const float* rotation,
                             const int* pos) {
    int h = int(blockIdx.x), g = h / (cache.H / cache.G), d = cache.d, j = int(threadIdx.x);
    const CacheRows k = cache.k(g), v = cache.v(g);
    const RowStore key_rows = k.store[cache.seen(g).stretch[0].k];
    const RowStore value_rows = v.store[cache.seen(g).stretch[0].v];
    const int kr = k.width, vr = v.width;
    float* c = reinterpret_cast<float*>(dynamic_shared());  // (d)
    float *key = c + d, *sums = key + d;
    float query = j < d ? q[size_t(h) * size_t(d) + size_t(j)] / sqrtf(float(d)) : 0;
    float max = -INFINITY, sum = 0, acc = 0;
    for (int s = 0; s <= *pos; s++) {
        if (j < kr) c[j] = to_float(elements_at<E>(key_rows, s)[j]);
        __syncthreads();  // the latents are there; the last key was read
        float x = 0;
        if (k.decode && j < d)
            for (int i = 0; i < kr; i++) x = fmaf(c[i], k.decode[i * d + j], x);
        else if (j < kr)
            x = c[j];
        if (j < d) key[j] = x;
        __syncthreads();  // the key is whole
        if (!cache.rotated && j < d) {
            const float* angle = rotation + size_t(s) * size_t(d);
            int half = d / 2, i = j % half;
            x = x * angle[i] + (j < half ? -key[j + half] : key[j - half]) * angle[half + i];
        }
        float score = block_sum(query * x, sums), most = fmaxf(max, score);
        float keep = expf(max - most), weight = expf(score - most);
        max = most, sum = sum * keep + weight;
        acc *= keep;
        if (j < vr) acc += weight * to_float(elements_at<E>(value_rows, s)[j]);
    }
    if (j < d) c[j] = acc / sum;  // c was read before the barriers of block_sum
    __syncthreads();              // it holds the merged values
    if (j >= d) return;
    float x = v.decode ? 0 : c[j];
    for (int i = 0; v.decode && i < vr; i++) x = fmaf(c[i], v.decode[i * d + j], x);
    out[size_t(h) * size_t(d) + size_t(j)] = x;
}

inline void naive(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                  const CacheLayer& cache) {
    size_t floats = size_t(2 * cache.d + NAIVE_BLOCK / WARP);
    auto kernel = cache.dtype == DType::F16 ? naive_kernel<f16> : naive_kernel<bf16>;
    launch(kernel, dim3(unsigned(cache.H)), NAIVE_BLOCK, floats * sizeof(float), gpu.queue, out,
           CacheView(cache), q, rotation, gpu.pos);
}

inline void shared_tile(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                        const CacheLayer& cache) {
    q = latent_queries(gpu, q, cache, 1);
    merge_splits(gpu, out, attend_splits_plain(gpu, q, rotation, cache, 1), cache);
}

inline void tensor_core(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                        const CacheLayer& cache) {
    q = latent_queries(gpu, q, cache, 1);
    merge_splits(gpu, out, attend_splits_tensor(gpu, q, rotation, cache, 1), cache);
}

inline void split(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                  const CacheLayer& cache) {
    q = latent_queries(gpu, q, cache, 1);
    merge_splits(gpu, out, attend_splits_tensor(gpu, q, rotation, cache), cache);
}

struct StepOfLadder {
    const char* name;
    void (*run)(CudaBackend& gpu, float* out, const float* q, const float* rotation,
                const CacheLayer& cache);
};
constexpr StepOfLadder STEPS[] = {{"naive", naive},
                                  {"shared tile", shared_tile},
                                  {"tensor cores", tensor_core},
                                  {"split", split}};

}  // namespace stief::ladder
