// Parts of attention on tensor cores: rows of the cache on their way to shared memory, fragments,
// and keys rebuilt and rotated. D: the head width; E: the rows' type of 16 bits; g = lane / 4, t =
// lane % 4.
//
// Rows lie in shared memory `stride` elements apart: whole fragments of 16 columns, and 8 more,
// which put the eight rows of a matrix into different banks. Columns beyond a row's own are zero.
#pragma once
#include "attention.cuh"

namespace stief {

constexpr int STEP = 16;  // keys that a warp takes at once: the rows of one fragment

__host__ __device__ constexpr int stride_of(int width) {
    return (width + 15) / 16 * 16 + 8;
}

// ---- fragments ---------------------------------------------------------------------------------

// a (16, 16) ← rows r … r + 15, columns c … c + 15.
template <class E>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const E* rows, int stride, int r, int c) {
    int lane = int(threadIdx.x) % WARP;
    load_matrix_x4(a, rows + (r + lane % 16) * stride + c + lane / 16 * 8);
}

// a (16, 16) ← the transpose of rows r … r + 15, columns c … c + 15: columns are the fragment's
// rows.
template <class E>
__device__ __forceinline__ void load_a_transposed(uint32_t (&a)[4], const E* rows, int stride,
                                                  int r, int c) {
    int lane = int(threadIdx.x) % WARP, i = lane / 8;
    load_matrix_x4_transposed(a, rows + (r + i / 2 * 8 + lane % 8) * stride + c + i % 2 * 8);
}

// b[0…1], b[2…3] (16, 8) each ← rows r … r + 15 and columns from c and from c + apart on.
template <class E>
__device__ __forceinline__ void load_b_pair(uint32_t (&b)[4], const E* rows, int stride, int r,
                                            int c, int apart) {
    int lane = int(threadIdx.x) % WARP, i = lane / 8;
    load_matrix_x4_transposed(b, rows + (r + i % 2 * 8 + lane % 8) * stride + c + i / 2 * apart);
}

template <class E>
__device__ __forceinline__ void mma_half(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[4], int half) {
    const uint32_t two[2] = {b[2 * half], b[2 * half + 1]};
    mma_16x8x16<E>(d, a, two);
}

__device__ __forceinline__ float2 load_pair(const float* x) {
    return *reinterpret_cast<const float2*>(x);
}

// ---- rows --------------------------------------------------------------------------------------

// Copies rows of r elements, one after another in memory (r a multiple of 4), by a number of
// threads of which this is number i: where each begins and how it goes on is known once for all
// tiles.
template <class E>
struct RowCopy {
    int stride, r, each, per;   // elements of one copy, copies of a row
    int row, c, rows_on, c_on;  // of this thread's first copy, and to its next

    __device__ __forceinline__ RowCopy(int width, int i, int threads)
        : stride(stride_of(width)), r(width), each(width % 8 ? 4 : 8), per(max(1, width / each)) {
        row = width ? i / per : 1 << 30, c = i % per * each;
        rows_on = threads / per, c_on = threads % per * each;
    }
    // Begins to copy the first `count` rows; those from there to `all` become zero.
    __device__ __forceinline__ void begin(E* to, const E* from, int count, int all) const {
        for (int y = row, x = c; y < all;) {
            bool there = y < count;
            const E* source = from + (there ? y * r + x : 0);
            E* target = to + y * stride + x;
            if (each == 8)
                copy_async_16(target, source, there);
            else
                copy_async_8(target, source, there);
            y += rows_on, x += c_on;
            if (x >= r) x -= r, y++;
        }
    }
};

// Begins to copy positions first … first + count − 1 from the stores that store_of(s) names, D
// columns wide: zero beyond what each keeps, as are rows from count to `all`.
template <class E, int D, class StoreOf>
__device__ __forceinline__ void copy_wide_rows(E* to, int stride, const CacheRows& head, int first,
                                               int count, int all, int i, int threads,
                                               const StoreOf& store_of) {
    constexpr int PER = D / 4;
    for (; i < all * PER; i += threads) {
        int row = i / PER, c = i % PER * 4;
        int s = first + min(row, count - 1);
        const RowStore& store = head.store[store_of(s)];
        bool there = row < count && c < elements_of(store);
        copy_async_8(to + row * stride + c, elements_at<E>(store, s) + (there ? c : 0), there);
    }
}

// The rows that lie by position, all of one width: a stretch of them is copied in long runs.
__host__ __device__ inline bool by_position(const CacheRows& k, const CacheRows& v,
                                            const Stretch& one) {
    return k.store[one.k].ring == 0 && v.store[one.v].ring == 0;
}
// Their stores: those that RowCopy and the stages are made for.
struct Oldest {
    RowStore k, v;
    __host__ __device__ Oldest(const CacheRows& keys, const CacheRows& values) {
        for (int i = 0; i < MOST_STORES; i++) {
            if (keys.store[i].data && keys.store[i].ring == 0) k = keys.store[i];
            if (values.store[i].data && values.store[i].ring == 0) v = values.store[i];
        }
    }
};

// ---- keys before rotation ----------------------------------------------------------------------

// What a block keeps to rebuild keys: D as E, and the rotations of 0 … 15 positions.
template <class E, int D>
struct Rebuild {
    static constexpr int STRIDE = D + 8;
    E* decode;      // shared (width, rounded up to 16, STRIDE)
    float* angles;  // shared (STEP, STRIDE)  cosines, sines

    static size_t shared_bytes(int width) {
        return size_t((width + 15) / 16 * 16) * STRIDE * sizeof(E) + STEP * STRIDE * sizeof(float);
    }
    // By the whole block; a barrier must follow.
    __device__ char* fill(char* memory, const CacheView& cache, const CacheRows& k,
                          const float* rotation) {
        int width = k.width;
        int rows = (width + 15) / 16 * 16, threads = int(blockDim.x);
        angles = reinterpret_cast<float*>(memory);
        decode = reinterpret_cast<E*>(angles + STEP * STRIDE);
        for (int i = int(threadIdx.x); i < STEP * D; i += threads)
            angles[i / D * STRIDE + i % D] = rotation[min(i / D, cache.capacity - 1) * D + i % D];
        for (int i = int(threadIdx.x); i < rows * D; i += threads)
            decode[i / D * STRIDE + i % D] = to_element<E>(i / D < width ? k.decode[i] : 0);
        return reinterpret_cast<char*>(decode + rows * STRIDE);
    }
    // The 16 keys that begin at row r of latents, columns c … c + 15 and D/2 + c … : the products
    // of a warp with D, lo[n] and hi[n] for columns 8n.
    __device__ __forceinline__ void product(float (&lo)[2][4], float (&hi)[2][4], const E* latents,
                                            int stride, int r, int c, int width) const {
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 4; i++) lo[n][i] = hi[n][i] = 0;
        for (int k = 0; k < width; k += 16) {
            uint32_t a[4], b[4];
            load_a(a, latents, stride, r, k);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                load_b_pair(b, decode, STRIDE, k, c + 8 * n, D / 2);
                mma_half<E>(lo[n], a, b, 0);
                mma_half<E>(hi[n], a, b, 1);
            }
        }
    }
};

}  // namespace stief
