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

    CacheView() = default;
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

// Floats of shared memory that row_product wants of a block of so many threads.
constexpr int product_sums(int threads) {
    return 4 * threads;
}
// to (n) ← x (K) M for the first n columns of M (K, ·), by the whole block, n ≤ blockDim; in little code,
// which is met once. Threads are fours of columns (a float4 of M) times slices of K, whole fours of rows (a
// float4 of x), whose sums meet in partial: with n = 128 and 256 threads
//     thread 0 … 31     columns 0 … 127, rows 0 … K/8 − 1
//     thread 32 … 63    the same columns, rows K/8 …         and so on, 8 slices
// M in shared memory or not; x, to, partial are, x and partial aligned to 16 bytes. x is there; the others
// are free when all threads come here. Bound by shared memory's 128 bytes a cycle: K·n·4.
__device__ __forceinline__ void row_product(float* to, const float* x, const float* M,
                                            size_t M_stride, int K, int n, float* partial) {
    int threads = int(blockDim.x), tid = int(threadIdx.x);
    int fours = max((n + 3) / 4, 1), slices = min(min(threads / fours, 32), (K + 7) / 8);
    int slice = tid / fours, column = tid % fours * 4;
    int each = slices > 0 ? (K + 4 * slices - 1) / (4 * slices) * 4 : 0, i = slice * each;
    int end = slice < slices ? min(K, i + each) : 0;
    bool whole = M_stride % 4 == 0 && reinterpret_cast<uintptr_t>(M) % 16 == 0;
    auto row = [&](int k) {
        const float* at = M + size_t(k) * M_stride + column;
        if (whole) return *reinterpret_cast<const float4*>(at);
        float4 y = {at[0], 0, 0, 0};
        if (column + 1 < n) y.y = at[1];
        if (column + 2 < n) y.z = at[2];
        if (column + 3 < n) y.w = at[3];
        return y;
    };
    float4 sum = make_float4(0, 0, 0, 0);
    auto add = [&](float by, const float4& y) {
        sum.x = fmaf(by, y.x, sum.x), sum.y = fmaf(by, y.y, sum.y);
        sum.z = fmaf(by, y.z, sum.z), sum.w = fmaf(by, y.w, sum.w);
    };
#pragma unroll 2
    for (; i + 4 <= end; i += 4) {
        float4 by = *reinterpret_cast<const float4*>(x + i);
        float4 y[4] = {row(i), row(i + 1), row(i + 2), row(i + 3)};
        add(by.x, y[0]), add(by.y, y[1]), add(by.z, y[2]), add(by.w, y[3]);
    }
#pragma unroll 1
    for (; i < end; i++) add(x[i], row(i));
    if (slice < slices) *reinterpret_cast<float4*>(partial + 4 * tid) = sum;
    __syncthreads();  // all slices are there
    if (tid < n) {
        float total = 0;
#pragma unroll 4
        for (int s = 0; s < slices; s++) total += partial[s * 4 * fours + tid];
        to[tid] = total;
    }
    __syncthreads();  // to is whole
}

}  // namespace stief
