// How kernels meet the cache's rows: which of them are exact for a token, where they lie, and small
// products with a head's basis. Twin: src/backend/cpu/cache_rows.h.
#pragma once
#include "cuda_backend.h"

namespace stief {

// What kernels know of a CacheLayer: an argument by value.
struct CacheView {
    const CacheRows* rows;  // (2, G)  keys, then values
    int capacity, H, G, d;
    int sinks, recent, ring;
    bool rotated;

    explicit CacheView(const CacheLayer& cache)
        : rows(cache.rows),
          capacity(cache.capacity),
          H(cache.H),
          G(cache.G),
          d(cache.d),
          sinks(cache.sinks),
          recent(cache.recent),
          ring(cache.ring),
          rotated(cache.rotated) {}
    __device__ const CacheRows& k(int g) const { return rows[g]; }
    __device__ const CacheRows& v(int g) const { return rows[G + g]; }
    // The exact row of a position: the sinks, then the ring.
    __device__ int slot(int s) const { return s < sinks ? s : sinks + (s - sinks) % ring; }
    // After the sinks, the first position that a token at `pos` sees exactly.
    __device__ int near_begin(int pos) const { return max(sinks, pos - recent + 1); }
};

// Coordinates of a head's rows, of the widest of them.
__host__ __device__ inline int width_of(const CacheRows& head, int d) {
    return head.exact ? d : head.r;
}

// Row s of a head, of d coordinates where exact, else of r.
template <class E>
__device__ __forceinline__ E* row_of(const CacheView& cache, const CacheRows& head, bool exact,
                                     int s) {
    E* from = static_cast<E*>(exact ? head.exact : head.data);
    return from + (exact ? size_t(cache.slot(s)) * size_t(cache.d) : size_t(s) * size_t(head.r));
}

// to (R, n) ← x (R, K) M for the first n columns of M (K, ·), by the whole block; R ≤ ROWS. Threads
// are columns times slices of K, whose sums meet in partial.
//   x, to, partial: shared; to does not overlap x. Everything is read and written between barriers.
template <int ROWS>
__device__ void block_product(float* to, int to_stride, const float* x, int x_stride,
                              const float* M, size_t M_stride, int R, int K, int n,
                              float* partial) {  // (ROWS, blockDim)
    int threads = int(blockDim.x), tid = int(threadIdx.x);
    int columns = min((n + WARP - 1) / WARP * WARP, threads), slices = threads / columns;
    int slice = tid / columns, column = tid % columns, each = (K + slices - 1) / slices;
    int first = slice * each, end = slice < slices ? min(K, first + each) : 0;
    for (int r0 = 0; r0 < R; r0 += ROWS)
        for (int j0 = 0; j0 < n; j0 += columns) {
            float sum[ROWS] = {};
            const float* rows = x + r0 * x_stride;
            if (j0 + column < n) {
                const float* m = M + size_t(first) * M_stride + (j0 + column);
#pragma unroll 4
                for (int i = first; i < end; i++, m += M_stride)
                    for (int r = 0; r < ROWS; r++)
                        if (r0 + r < R) sum[r] = fmaf(rows[r * x_stride + i], *m, sum[r]);
            }
            __syncthreads();  // the sums of the last round were read
            for (int r = 0; r < ROWS; r++) partial[r * threads + tid] = sum[r];
            __syncthreads();  // all slices are there
            for (int i = tid; i < ROWS * columns; i += threads) {
                int r = i / columns, j = i % columns;
                if (r0 + r >= R || j0 + j >= n) continue;
                float total = 0;
                for (int s = 0; s < slices; s++) total += partial[r * threads + s * columns + j];
                to[(r0 + r) * to_stride + j0 + j] = total;
            }
        }
    __syncthreads();  // to is whole
}

}  // namespace stief
