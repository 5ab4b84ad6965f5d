// What appending one token (append_one.cu) and several (cache_rows.cu) have in common: heads on their way
// into the cache, and how a head's rows are stored.
#pragma once
#include "row_encoder.cuh"

namespace stief {

// What a step's heads are on their way into the cache and attention.
struct HeadsIn {
    float* q;               // (T, H, d)  null: no queries
    float* latent;          // (T, H, d)  q in the keys' coordinates; null: not wanted
    const float *k, *v;     // (T, G, d)
    const float* rotation;  // null: nothing is rotated
    int queries;            // heads of q: H, or 0
};

// The queries' heads and, where there are any, the keys' and the values' of a step of one token.
void append_one(CudaBackend& gpu, const CacheLayer& cache, const HeadsIn& in, int heads);

// x (count, d) of shared memory ← rows `stride` apart, rotated where there is an angle (2, d/2) for the
// first of them; and back to where they were where `in_place`.
__device__ __forceinline__ void load_heads(float* x, const float* from, float* in_place,
                                           size_t stride, int count, int d, const float* angle) {
    int half = d / 2;
#pragma unroll 4
    for (int i = int(threadIdx.x); i < count * half; i += int(blockDim.x)) {
        int t = i / half, j = i % half;
        float a = from[size_t(t) * stride + size_t(j)], b = from[size_t(t) * stride + size_t(j + half)];
        if (angle) {
            float cos = angle[size_t(t) * size_t(d) + size_t(j)];
            float sin = angle[size_t(t) * size_t(d) + size_t(j + half)], low = a;
            a = low * cos - b * sin, b = b * cos + low * sin;
        }
        x[t * d + j] = a, x[t * d + j + half] = b;
        if (in_place)
            in_place[size_t(t) * stride + size_t(j)] = a,
            in_place[size_t(t) * stride + size_t(j + half)] = b;
    }
}

// What storing a head's rows reads again and again.
struct alignas(16) EncoderTables {
    CacheRows head;
    int kinds[MOST_STORES];  // NONE, WHOLE or CODES
    Levels levels;           // where a store has codes, as are the next two
    float weight[RowWidths::MOST];
    RowWidths widths[MOST_STORES];
    enum { NONE, WHOLE, CODES };

    // By the whole block, and waits for no kernel: asks for what lies far away, all at once, the levels by
    // cp.async; then, behind a barrier, describes the rows. Another must follow.
    __device__ __forceinline__ void fetch(const CacheRows& from, bool codes) {
        int tid = int(threadIdx.x), threads = int(blockDim.x);
        static_assert(sizeof(Levels) % 16 == 0);
        for (int i = tid; codes && i < int(sizeof(Levels)) / 16; i += threads)
            copy_async_16(reinterpret_cast<char*>(&levels) + 16 * i,
                          reinterpret_cast<const char*>(&DEVICE_LEVELS) + 16 * i, true);
        copy_words(&head, &from, tid, threads);
    }
    __device__ __forceinline__ void describe(bool codes) {
        int tid = int(threadIdx.x), threads = int(blockDim.x);
        if (tid < MOST_STORES) {
            const RowStore& store = head.store[tid];
            kinds[tid] = !store.data ? NONE : coded(store.format) ? CODES : WHOLE;
        }
        if (!codes) return;
        for (int i = tid; i < head.width; i += threads) weight[i] = head.weight ? head.weight[i] : 1;
#pragma unroll 1
        for (int n = 0; n < MOST_STORES; n++)
            if (head.store[n].data) widths[n].fill(head.store[n].format, tid, threads);
    }
};

}  // namespace stief
