// One warp's 16 query rows in registers, over tiles of 64 keys in shared memory: their scores, the
// running softmax, their sums of values (Dao 2023, FlashAttention-2). attention_flash.cuh brings the
// tiles.
//
// Queries are on the M side and stay in registers for a stretch, multiplied by its keys' steps; weights
// go from one product to the next in registers.
#pragma once
#include "attention_tensor.cuh"

namespace stief {

constexpr int FLASH_WARPS = 4, FLASH_BLOCK = FLASH_WARPS * WARP;
constexpr int FLASH_ROWS = FLASH_WARPS * 16, FLASH_KEYS = 64;
static_assert(FLASH_KEYS == FLASH_WARPS * STEP);  // a warp rebuilds one step of a tile

// After every tile, for rows g and g + 8:
//     max = max s,  sum = Σ 2^(s − max) (this lane's keys),  acc = Σ 2^(s − max) c
template <class E, int D>
struct FlashRows {
    static constexpr int FRAGMENTS = D / 16, TILES = FLASH_KEYS / 8;
    int lane, g, t, token[2];  // positions of the rows' tokens
    uint32_t fragment[FRAGMENTS][4];
    float acc[2 * FRAGMENTS][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};

    __device__ __forceinline__ FlashRows() {
        lane = int(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
    }

    // Row g + 8 i is q (D), or nothing; step(column): what its columns are multiplied by.
    template <class By>
    __device__ __forceinline__ void set_row(int i, const float* q, const By& step) {
        float scale = LOG2_E / sqrtf(float(D));
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int column = 16 * f + 8 * half + 2 * t;
                float2 x = q ? load_pair(q + column) : make_float2(0, 0);
                float by = scale * step(column);
                fragment[f][2 * half + i] = pack2<E>(by * x.x, by * x.y);
            }
    }
    // acc counts in the values' steps, or again in ones.
    template <class Tiles>
    __device__ __forceinline__ void count_in(const Tiles& v, bool steps) {
        if (!v.shape.groups) return;
#pragma unroll
        for (int n = 0; n < 2 * FRAGMENTS; n++) {
            float step = v.step(8 * n + 2 * t), by = steps ? 1 / step : step;
            for (int i = 0; i < 4; i++) acc[n][i] *= by;  // neighbours are of one group
        }
    }

    // s (16 rows, 64 keys) += q · k̃, columns from … end − 1.
    __device__ __forceinline__ void score_columns(float (&s)[TILES][4], const E* keys, int stride,
                                                  int from, int end) {
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
            if (16 * f < end && 16 * f + 16 > from) {
                uint32_t a[4];
                for (int i = 0; i < 4; i++)
                    a[i] = within(fragment[f][i], 16 * f + i / 2 * 8 + 2 * t, from, end);
#pragma unroll
                for (int n = 0; n < TILES; n += 2) {
                    uint32_t b[4];
                    int i = lane / 8;
                    load_matrix_x4(
                        b, keys + (8 * n + i / 2 * 8 + lane % 8) * stride + 16 * f + i % 2 * 8);
                    mma_half<E>(s[n], a, b, 0);
                    mma_half<E>(s[n + 1], a, b, 1);
                }
            }
    }
    // s ⊙= ρ of this lane's keys
    __device__ __forceinline__ void by_scales(float (&s)[TILES][4], const float* rho) {
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            float2 two = load_pair(rho + 8 * n + 2 * t);
            s[n][0] *= two.x, s[n][1] *= two.y, s[n][2] *= two.x, s[n][3] *= two.y;
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

    // acc += p c, columns from … end − 1.
    __device__ __forceinline__ void add_columns(const float (&p)[TILES][4], const E* values,
                                                int stride, int from, int end) {
#pragma unroll
        for (int n = 0; n < TILES; n += 2) {
            uint32_t a[4] = {pack2<E>(p[n][0], p[n][1]), pack2<E>(p[n][2], p[n][3]),
                             pack2<E>(p[n + 1][0], p[n + 1][1]),
                             pack2<E>(p[n + 1][2], p[n + 1][3])};
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++)
                if (16 * f < end && 16 * f + 16 > from) {
                    uint32_t b[4];
                    load_b_pair(b, values, stride, 8 * n, 16 * f, 8);
                    if (16 * f < from || 16 * f + 16 > end)
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            b[i] = within(b[i], 16 * f + i / 2 * 8 + g, from, end);
                    mma_half<E>(acc[2 * f], a, b, 0);
                    mma_half<E>(acc[2 * f + 1], a, b, 1);
                }
        }
    }
};

}  // namespace stief
