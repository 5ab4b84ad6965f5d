// How kernels meet the cache's rows: what a token sees, where its rows lie, and small products with
// a head's basis. Twin: src/backend/cpu/cache_rows.h.
#pragma once
#include "cuda_backend.h"

namespace stief {

// What kernels know of a CacheLayer: an argument by value.
struct CacheView {
    const CacheRows* rows;  // (2, G)  keys, then values
    const Seen* seen_rows;  // (G)
    int capacity, H, G, d;
    int joint;  // G·d where values are joint, 0 where heads have their own
    bool rotated;

    explicit CacheView(const CacheLayer& cache)
        : rows(cache.rows),
          seen_rows(cache.seen_rows),
          capacity(cache.capacity),
          H(cache.H),
          G(cache.G),
          d(cache.d),
          joint(cache.joint),
          rotated(cache.rotated) {}
    __device__ const CacheRows& k(int g) const { return rows[g]; }
    __device__ const CacheRows& v(int g) const { return rows[G + g]; }
    __device__ const Seen& seen(int g) const { return seen_rows[g]; }
    // What attention by head sums of values: their coordinates, or joint ones made a head's own.
    __device__ int values_of(int g) const { return joint ? d : v(g).width; }
};

// A description to shared memory, by so many threads of which this is number i: what it says is read in
// chains, and from there each read is no round trip.
template <class T>
__device__ __forceinline__ void copy_words(T* shared, const T* from, int i, int threads) {
    static_assert(sizeof(T) % sizeof(uint32_t) == 0);
    for (; i < int(sizeof(T) / sizeof(uint32_t)); i += threads)
        reinterpret_cast<uint32_t*>(shared)[i] = reinterpret_cast<const uint32_t*>(from)[i];
}

// Where the row of position s begins.
__device__ __forceinline__ char* row_at(const RowStore& store, int s) {
    int slot = store.ring == 0 || s < store.fixed ? s : store.fixed + (s - store.fixed) % store.ring;
    return static_cast<char*>(store.data) + size_t(slot) * size_t(store.bytes);
}
// The same where a row is elements and no codes.
template <class E>
__device__ __forceinline__ E* elements_at(const RowStore& store, int s) {
    return reinterpret_cast<E*>(row_at(store, s));
}

__host__ __device__ inline bool coded(const RowFormat& format) {
    unsigned any = 0;  // all are read at once
    for (int w = 1; w < RowFormat::WIDTHS; w++) any |= format.count[w];
    return any;
}
inline bool whole_rows(const CacheLayer& cache) {
    for (const std::vector<CacheRows>* side : {&cache.k, &cache.v})
        for (const CacheRows& head : *side)
            for (const RowStore& store : head.store)
                if (coded(store.format)) return false;
    return true;
}
// Groups of codes of a row.
__host__ __device__ inline int groups_of(const RowFormat& format) {
    int codes = 0;
    for (int w = 1; w < RowFormat::WIDTHS; w++) codes += int(format.count[size_t(w)]);
    return codes / ROW_GROUP;
}
// Coordinates of a row.
__host__ __device__ inline int kept_of(const RowFormat& format) {
    return int(format.count[0]) + ROW_GROUP * groups_of(format);
}
// Coordinates of a whole row; of a row of codes count[0] of them are elements.
__host__ __device__ inline int elements_of(const RowStore& store) {
    return int(store.format.count[0]);
}
// Whether its rows are d elements, as they came.
__host__ __device__ inline bool lies_whole(const RowStore& store, int d) {
    return store.format.keeps_all(d);
}

// to (n) ← x (K) M for the first n columns of M (K, ·), by the whole block, n ≤ blockDim; in little code,
// which is met once. Threads are columns times slices of K, whose sums meet in partial. M in shared memory
// or not; x, to, partial (blockDim) are, x aligned to 16 bytes. x is there; the others are free when all
// threads come here.
__device__ __forceinline__ void row_product(float* to, const float* x, const float* M,
                                            size_t M_stride, int K, int n, float* partial) {
    int threads = int(blockDim.x), tid = int(threadIdx.x);
    int columns = (n + WARP - 1) / WARP * WARP, slices = threads / max(columns, WARP);
    int slice = tid / max(columns, WARP), column = tid % max(columns, WARP);
    int each = (K + 4 * slices - 1) / (4 * slices) * 4, i = slice * each;
    int end = slice < slices && column < n ? min(K, i + each) : 0;
    float sum = 0;
    const float* from = M + column;
#pragma unroll 2
    for (; i + 4 <= end; i += 4) {
        float4 y = *reinterpret_cast<const float4*>(x + i);
        const float* at = from + size_t(i) * M_stride;
        float w[4] = {at[0], at[M_stride], at[2 * M_stride], at[3 * M_stride]};
        sum = fmaf(y.x, w[0], fmaf(y.y, w[1], fmaf(y.z, w[2], fmaf(y.w, w[3], sum))));
    }
#pragma unroll 1
    for (; i < end; i++) sum = fmaf(x[i], from[size_t(i) * M_stride], sum);
    partial[tid] = sum;
    __syncthreads();  // all slices are there
    if (tid < n) {
        float total = 0;
        for (int s = 0; s < slices; s++) total += partial[s * columns + tid];
        to[tid] = total;
    }
    __syncthreads();  // to is whole
}

}  // namespace stief
