// Prefill attention on tensor cores: rows of 16 bits, heads of 64 or 128 (Dao 2023,
// FlashAttention-2).
//
// A block has 64 query rows, 16 a warp; a tile has 64 keys. Queries are on the M side and stay in
// registers; weights go from one product to the next in registers. Keys before rotation are rebuilt
// and rotated once a tile, 16 a warp, by the angle of their 16's first position plus the distance
// from it. Positions are taken by stretches, as attention_tiles.cpp says: what all tokens of the tile
// see by position with two tiles in flight, the rest of it and the young ages a tile at a time.
#pragma once
#include "attention_tensor.cuh"

namespace stief {

constexpr int FLASH_WARPS = 4, FLASH_BLOCK = FLASH_WARPS * WARP;
constexpr int FLASH_ROWS = FLASH_WARPS * 16, FLASH_KEYS = 64;
static_assert(FLASH_KEYS == FLASH_WARPS * STEP);  // a warp rebuilds one step of a tile

// One warp's 16 query rows. After every tile, for rows g and g + 8:
//     max = max s,  sum = Σ 2^(s − max) (this lane's keys),  acc = Σ 2^(s − max) c
template <class E, int D, bool ROTATED>
struct Flash {
    static constexpr int WIDE = D + 8, FRAGMENTS = D / 16, TILES = FLASH_KEYS / 8;
    const CacheView& cache;
    const CacheRows &k, &v;
    const float* rotation;
    const Rebuild<E, D>& basis;
    E *rebuilt, *tiles;  // shared (KEYS, WIDE), where keys are rebuilt; rows on their way
    int lane, warp, g, t, token[2];  // positions of the rows' tokens
    uint32_t fragment[FRAGMENTS][4];
    float acc[2 * FRAGMENTS][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};

    static __host__ __device__ size_t tile_bytes(const CacheRows& keys, const CacheRows& values) {
        const Oldest old(keys, values);
        int strides = stride_of(elements_of(old.k)) + stride_of(elements_of(old.v));
        size_t both = 2 * FLASH_KEYS * size_t(strides), wide = FLASH_KEYS * size_t(WIDE);
        return (both > wide ? both : wide) * sizeof(E);
    }
    static size_t shared_bytes(const CacheRows& keys, const CacheRows& values) {
        size_t own = FLASH_KEYS * WIDE * sizeof(E);
        return tile_bytes(keys, values) +
               (ROTATED ? 0 : own + Rebuild<E, D>::shared_bytes(keys.width));
    }

    __device__ __forceinline__ Flash(const CacheView& view, const CacheRows& keys,
                                     const CacheRows& values, const float* angles,
                                     const Rebuild<E, D>& rebuild, E* memory)
        : cache(view), k(keys), v(values), rotation(angles), basis(rebuild), rebuilt(memory) {
        tiles = memory + (ROTATED ? 0 : FLASH_KEYS * WIDE);
        warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
    }

    // Row g + 8 i is q (D), or nothing.
    __device__ __forceinline__ void set_row(int i, const float* q) {
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float2 x = q ? load_pair(q + 16 * f + 8 * half + 2 * t) : make_float2(0, 0);
                float scale = LOG2_E / sqrtf(float(D));
                fragment[f][2 * half + i] = pack2<E>(scale * x.x, scale * x.y);
            }
    }

    // ---- rows

    // Begins to copy a tile of one store's rows so that every column is written.
    __device__ __forceinline__ void copy_wide(E* to, const CacheRows& head, int store, int first,
                                              int count) {
        copy_wide_rows<E, D>(to, WIDE, head, first, count, FLASH_KEYS, int(threadIdx.x),
                             FLASH_BLOCK, [=](int) { return store; });
        copy_async_commit();
    }
    __device__ __forceinline__ void arrive() {
        copy_async_wait<0>();
        __syncthreads();  // every thread's copies are there
    }

    // rebuilt ← the tile's keys, rotated to their positions.
    __device__ __forceinline__ void rebuild(const E* latents, int stride, int width, int first,
                                            int count) {
        constexpr int HALF = D / 2;
        int row = STEP * warp;
        const float* from = rotation + size_t(first + (row < count ? row : 0)) * D;
#pragma unroll 1
        for (int c = 0; c < HALF; c += 16) {
            float lo[2][4], hi[2][4];
            basis.product(lo, hi, latents, stride, row, c, width);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                int column = c + 8 * n + 2 * t;
                float2 cos0 = load_pair(from + column), sin0 = load_pair(from + HALF + column);
#pragma unroll
                for (int i = 0; i < 2; i++) {  // keys g, g + 8
                    const float* by = basis.angles + (g + 8 * i) * basis.STRIDE + column;
                    float2 cos1 = load_pair(by), sin1 = load_pair(by + HALF);
                    float cx = cos0.x * cos1.x - sin0.x * sin1.x;
                    float sx = sin0.x * cos1.x + cos0.x * sin1.x;
                    float cy = cos0.y * cos1.y - sin0.y * sin1.y;
                    float sy = sin0.y * cos1.y + cos0.y * sin1.y;
                    float *x = lo[n] + 2 * i, *y = hi[n] + 2 * i;
                    E* to = rebuilt + (row + g + 8 * i) * WIDE + column;
                    *reinterpret_cast<uint32_t*>(to) =
                        pack2<E>(x[0] * cx - y[0] * sx, x[1] * cy - y[1] * sy);
                    *reinterpret_cast<uint32_t*>(to + HALF) =
                        pack2<E>(y[0] * cx + x[0] * sx, y[1] * cy + x[1] * sy);
                }
            }
        }
        __syncthreads();  // the keys are whole
    }

    // ---- products

    // s (16 rows, 64 keys) ← q · k̃, for rows that are there.
    __device__ __forceinline__ void score(float (&s)[TILES][4], const E* keys, int stride,
                                          int width, int first, int count) {
        if constexpr (!ROTATED) {
            rebuild(keys, stride, width, first, count);
            keys = rebuilt, stride = WIDE, width = D;
        }
#pragma unroll
        for (int n = 0; n < TILES; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
            if (16 * f < width)
#pragma unroll
                for (int n = 0; n < TILES; n += 2) {
                    uint32_t b[4];
                    int i = lane / 8;
                    load_matrix_x4(
                        b, keys + (8 * n + i / 2 * 8 + lane % 8) * stride + 16 * f + i % 2 * 8);
                    mma_half<E>(s[n], fragment[f], b, 0);
                    mma_half<E>(s[n + 1], fragment[f], b, 1);
                }
    }

    // Calls visit(value of s, row 0 or 1, position) for what this lane has of the tile.
    template <class Visit>
    __device__ __forceinline__ void for_each(float (&s)[TILES][4], int first, const Visit& visit) {
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) visit(s[n][i], i / 2, first + 8 * n + 2 * t + i % 2);
    }

    // s ← 2^(s − max) where the row sees the key, else 0; rescales what the row has so far. masked:
    // some rows may not see all keys of the tile, or none.
    __device__ __forceinline__ void softmax(float (&s)[TILES][4], const Stretch& one, int first,
                                            int count, bool masked) {
        if (masked || count < FLASH_KEYS)
            for_each(s, first, [&](float& x, int row, int at) {
                bool seen = at >= one.begin_for(token[row]) && at < one.end_for(token[row]);
                if (at >= first + count || !seen) x = -INFINITY;
            });
        float most[2] = {max[0], max[1]}, keep[2];
        for_each(s, first, [&](float& x, int row, int) { most[row] = fmaxf(most[row], x); });
#pragma unroll
        for (int i = 0; i < 2; i++) {
            for (int mask = 1; mask < 4; mask *= 2)
                most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], mask));
            float before = max[i];
            max[i] = most[i];
            if (most[i] == -INFINITY) most[i] = 0;  // the row has seen nothing: 2^−∞ = 0
            keep[i] = exp2f(before - most[i]);
            sum[i] *= keep[i];
        }
        for_each(s, first, [&](float& x, int row, int) { sum[row] += x = exp2f(x - most[row]); });
#pragma unroll
        for (int n = 0; n < 2 * FRAGMENTS; n++)
            for (int i = 0; i < 4; i++) acc[n][i] *= keep[i / 2];
    }

    // acc += p c
    __device__ __forceinline__ void add_values(const float (&p)[TILES][4], const E* values,
                                               int stride, int width) {
#pragma unroll
        for (int n = 0; n < TILES; n += 2) {
            uint32_t a[4] = {pack2<E>(p[n][0], p[n][1]), pack2<E>(p[n][2], p[n][3]),
                             pack2<E>(p[n + 1][0], p[n + 1][1]),
                             pack2<E>(p[n + 1][2], p[n + 1][3])};
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++)
                if (16 * f < width) {
                    uint32_t b[4];
                    load_b_pair(b, values, stride, 8 * n, 16 * f, 8);
                    mma_half<E>(acc[2 * f], a, b, 0);
                    mma_half<E>(acc[2 * f + 1], a, b, 1);
                }
        }
    }

    // ---- stretches

    // Positions begin … end − 1 of a stretch that lies by position and that all tokens see, but for
    // what comes after them; two tiles in flight.
    __device__ __forceinline__ void old_stretch(const Stretch& one, int begin, int end, int pos) {
        const RowStore old_k = k.store[one.k], old_v = v.store[one.v];
        int kr = elements_of(old_k), vr = elements_of(old_v);
        RowCopy<E> copy_keys(kr, int(threadIdx.x), FLASH_BLOCK);
        RowCopy<E> copy_values(vr, int(threadIdx.x), FLASH_BLOCK);
        int ks = copy_keys.stride, vs = copy_values.stride;
        auto keys_of = [&](int first) {
            return tiles + (first - begin) / FLASH_KEYS % 2 * FLASH_KEYS * (ks + vs);
        };
        auto copy = [&](int first) {
            if (first < end) {
                E* to = keys_of(first);
                int count = min(FLASH_KEYS, end - first);
                copy_keys.begin(to, elements_at<E>(old_k, first), count, FLASH_KEYS);
                copy_values.begin(to + FLASH_KEYS * ks, elements_at<E>(old_v, first), count,
                                  FLASH_KEYS);
            }
            copy_async_commit();
        };
        copy(begin);
        for (int first = begin; first < end; first += FLASH_KEYS) {
            copy(first + FLASH_KEYS);
            copy_async_wait<1>();
            __syncthreads();  // every thread's copies of this tile are there
            int count = min(FLASH_KEYS, end - first);
            float s[TILES][4];
            const E* keys = keys_of(first);
            score(s, keys, ks, kr, first, count);
            softmax(s, one, first, count, first + count > pos);
            add_values(s, keys + FLASH_KEYS * ks, vs, vr);
            __syncthreads();  // the tile was read
        }
        arrive();
    }

    // Positions begin … end − 1 of any stretch.
    __device__ __forceinline__ void young_stretch(const Stretch& one, int begin, int end) {
        for (int first = begin; first < end; first += FLASH_KEYS) {
            int count = min(FLASH_KEYS, end - first);
            float s[TILES][4];
            copy_wide(tiles, k, one.k, first, count);
            arrive();
            score(s, tiles, WIDE, D, first, count);
            __syncthreads();  // the tile was read
            softmax(s, one, first, count, true);
            copy_wide(tiles, v, one.v, first, count);
            arrive();
            add_values(s, tiles, WIDE, D);
            __syncthreads();  // the tile was read
        }
    }

    // All that tokens pos … last see. The oldest first: their columns beyond a row's own are zero
    // only until wider rows come to lie there.
    __device__ __forceinline__ void all(const Seen& seen, int pos, int last) {
        int begin[2], end[2];  // before and after what all see by position
#pragma unroll 1
        for (int i = 0; i < 2 * seen.count; i++) {
            const Stretch one = seen.stretch[i % seen.count];
            begin[0] = one.begin_for(pos), end[1] = one.end_for(last);
            end[0] = one.begin_for(last), begin[1] = one.lo ? one.end_for(pos) : end[1];
            if (!by_position(k, v, one) || end[0] >= begin[1]) end[0] = begin[1] = end[1];
            if (i < seen.count) {
                old_stretch(one, end[0], begin[1], pos);
                continue;
            }
            young_stretch(one, begin[0], end[0]);
            young_stretch(one, begin[1], end[1]);
        }
    }
};

}  // namespace stief
