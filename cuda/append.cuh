// What appending one token (append_one.cu) and several (append_tiles.cu) have in common: heads on their way
// into the cache, and how a head's rows are stored.
#pragma once
#include "row_encoder.cuh"

namespace stief {

// What a step's heads are on their way into the cache and attention.
struct HeadsIn {
    float* q;               // (T, H, d)  null: no queries
    float* latent;          // (T, H, d)  q in the keys' coordinates; null: not wanted
    float* against_mean;    // (H, d)  of one token, q against the keys' means; null: not wanted
    const float *k, *v;     // (T, G, d)
    const float* rotation;  // null: nothing is rotated
    int queries;            // heads of q: H, or 0
    float* later = nullptr; // (2, G, d)  of one token, what its rows of codes are made of behind the step
                            // (append_later.cu); of keys apart c is for them alone. null: at once

    // Those of keys and of values; joint ones have a way of their own (joint_values.cuh).
    int heads_of(const CacheLayer& cache) const { return !k ? 0 : cache.joint ? cache.G : 2 * cache.G; }
    // Whether a head's keys that are whole rows differ from the others of the same head: they lose no mean.
    bool apart(const CacheLayer& cache) const {
        bool any = false;
        for (size_t g = 0; k && rotation && g < size_t(cache.G); g++)
            for (const RowStore& store : cache.k[g].store)
                any |= cache.less_turned_mean(g) && store.data && store.format.keeps_all(cache.d);
        return any;
    }
};

// Of a step of one token, and of several: the queries' heads, where there are any, and the keys' and the
// values', where there are any.
void append_one(CudaBackend& gpu, const CacheLayer& cache, const HeadsIn& in);
void append_tiles(CudaBackend& gpu, const CacheLayer& cache, const HeadsIn& in, int T);

// A token's rows of codes in one layer, which are still to be made of x (2, G, d), HeadsIn::later.
struct WaitingRows {
    CacheView cache;
    const float* x;
};

// What storing a head's rows reads again and again.
template <class Widths>
struct alignas(16) TablesOf {
    CacheRows head;
    int kinds[MOST_STORES];  // NONE, WHOLE or CODES
    float weight[Widths::MOST];  // where a store has codes, as are the next
    Widths widths[MOST_STORES];
    enum { NONE, WHOLE, CODES };

    // By the whole block, and waits for no kernel: the levels, far away, by cp.async.
    __device__ __forceinline__ static void fetch_levels(Levels* levels) {
        static_assert(sizeof(Levels) % 16 == 0);
        for (int i = int(threadIdx.x); i < int(sizeof(Levels)) / 16; i += int(blockDim.x))
            copy_async_16(reinterpret_cast<char*>(levels) + 16 * i,
                          reinterpret_cast<const char*>(&DEVICE_LEVELS) + 16 * i, true);
    }
    // The same of the head's description, which behind a barrier says how its rows lie. Another must follow.
    __device__ __forceinline__ void fetch(const CacheRows& from) {
        copy_words(&head, &from, int(threadIdx.x), int(blockDim.x));
    }
    __device__ __forceinline__ void describe(bool codes) {
        int tid = int(threadIdx.x), threads = int(blockDim.x);
        if (tid < MOST_STORES) {
            const RowStore& store = head.store[tid];
            kinds[tid] = !store.data ? NONE : coded(store.format) ? CODES : WHOLE;
        }
        if (!codes) return;
        for (int i = tid; i < min(head.width, Widths::MOST); i += threads)
            weight[i] = head.weight ? head.weight[i] : 1;
#pragma unroll 1
        for (int n = 0; n < MOST_STORES; n++)
            if (head.store[n].data) widths[n].fill(head.store[n].format, tid, threads);
    }
};
using EncoderTables = TablesOf<RowWidths>;

}  // namespace stief
