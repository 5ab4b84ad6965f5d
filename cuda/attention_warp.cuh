// One warp's part of decode attention on tensor cores: rows of 16 bits or of codes, heads of 64 or
// 128.
//
// The warps of a block share nothing but the queries, the basis and the tables of a stretch: each
// takes every fourth step of 16 positions, copies its rows on its own (cp.async, up to three steps
// at once, no barrier of the block), unpacks what is codes, and has its own running max and sum. A
// step has its keys on the M side and 8 query heads on the N side:
//   keys after rotation    s = C (q Dᵀ)ᵀ: the latents as they lie are the fragments; where they are
//                          levels, q Dᵀ has been multiplied by their steps and s is by the scales
//   keys before rotation   the 16 keys are rebuilt, C D, and rotated by their distance from the
//                          step's first position p, 0 … 15 (a table of the block); q is rotated
//                          back by p:
//                          q · R_{p+i} k = (R_pᵀ q) · (R_i k), since RoPE's angles are linear in
//                          the position. A table row for each key would be d·4 bytes a key, more
//                          than its latents; so it is one for 16.
//   values                 acc += Cᵀ p in latent coordinates, weights rounded to E and transposed;
//                          of levels p ρ instead of p, and acc counts in the stretch's steps
#pragma once
#include "attention_tensor.cuh"

namespace stief {

constexpr int TENSOR_WARPS = 4, TENSOR_BLOCK = TENSOR_WARPS * WARP;
constexpr int SHARE = TENSOR_WARPS * STEP;  // positions: a block's share is a multiple of these

// One warp's work on Q tiles of 8 query heads. After every step, for each of them:
//     max = max s,  sum = Σ 2^(s − max) (this lane's keys),  acc = Σ 2^(s − max) c
template <class E, int D, int Q, bool ROTATED>
struct Warp {
    using Tiles = RowTiles<E, D, STEP>;
    static constexpr int Q_STRIDE = D + 8, FRAGMENTS = D / 16;
    const float *rotation, *q;  // q: shared (8 Q, Q_STRIDE), scaled by log₂ e / √d
    const Rebuild<E, D>& basis;
    const StretchTables<D>& tables;
    Tiles k, v;    // of the stretch at hand
    char* memory;  // this warp's: a tile where there are codes, then stages
    int lane, g, t;
    uint32_t fragment[ROTATED ? Q : 1][FRAGMENTS][2];  // q, where the keys are rotated
    float acc[Q][FRAGMENTS][4], max[Q][2], sum[Q][2];  // (coordinates g, g+8) x (heads 2t, 2t+1)

    __device__ __forceinline__ Warp(const float* angles, const float* queries,
                                    const Rebuild<E, D>& rebuild, const StretchTables<D>& shared,
                                    char* own)
        : rotation(angles),
          q(queries),
          basis(rebuild),
          tables(shared),
          k{shared.shape[0], shared.group[0], 0, 0, 0},
          v{shared.shape[1], shared.group[1], 0, 0, 0},
          memory(own) {
        lane = int(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < Q; n++) {
            max[n][0] = max[n][1] = -INFINITY, sum[n][0] = sum[n][1] = 0;
            for (int f = 0; f < FRAGMENTS; f++)
                for (int i = 0; i < 4; i++) acc[n][f][i] = 0;
        }
    }

    // ---- products

    // s[n] (16 keys, 8 heads) of tile n += keys after rotation, columns from … end − 1.
    __device__ __forceinline__ void score_columns(float (&s)[Q][4], const E* keys, int from,
                                                  int end) {
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
            if (16 * f < end && 16 * f + 16 > from) {
                uint32_t a[4];
                load_a(a, keys, k.stride(), 0, 16 * f);
                if (16 * f < from || 16 * f + 16 > end)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        a[i] = within(a[i], 16 * f + i / 2 * 8 + 2 * t, from, end);
#pragma unroll
                for (int n = 0; n < Q; n++) mma_16x8x16<E>(s[n], a, fragment[ROTATED ? n : 0][f]);
            }
    }
    __device__ __forceinline__ void score(float (&s)[Q][4], const E* keys, const float (&rho)[2]) {
        if (k.shape.groups) {
            score_columns(s, keys, k.shape.elements, k.shape.columns);
#pragma unroll
            for (int n = 0; n < Q; n++)
                for (int i = 0; i < 4; i++) s[n][i] *= rho[i / 2];
        }
        score_columns(s, keys, 0, k.shape.elements);
    }

    // The same for keys before rotation. angle: shared (D)  cosines, sines of the first position.
    __device__ __forceinline__ void score_rebuilt(float (&s)[Q][4], const E* latents,
                                                  const float (&rho)[2], const float* angle) {
        constexpr int HALF = D / 2;
#pragma unroll 1
        for (int c = 0; c < HALF; c += 16) {
            float lo[2][4], hi[2][4];
            basis.keys(lo, hi, latents, k, rho, 0, c);
            uint32_t a[2][4];  // keys, columns from c and from D/2 + c
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {  // keys g, g + 8
                    const float* by = basis.angles + (g + 8 * i) * basis.STRIDE + c + 8 * n + 2 * t;
                    float2 cos = load_pair(by), sin = load_pair(by + HALF);
                    float *x = lo[n] + 2 * i, *y = hi[n] + 2 * i;
                    a[0][2 * n + i] =
                        pack2<E>(x[0] * cos.x - y[0] * sin.x, x[1] * cos.y - y[1] * sin.y);
                    a[1][2 * n + i] =
                        pack2<E>(y[0] * cos.x + x[0] * sin.x, y[1] * cos.y + x[1] * sin.y);
                }
#pragma unroll
            for (int n = 0; n < Q; n++) {
                uint32_t b[2][2];
#pragma unroll
                for (int i = 0; i < 2; i++) {  // R_pᵀ q
                    int column = c + 8 * i + 2 * t;
                    const float* one = q + (8 * n + g) * Q_STRIDE + column;
                    float2 x = load_pair(one), y = load_pair(one + HALF);
                    float2 cos = load_pair(angle + column), sin = load_pair(angle + HALF + column);
                    b[0][i] = pack2<E>(x.x * cos.x + y.x * sin.x, x.y * cos.y + y.y * sin.y);
                    b[1][i] = pack2<E>(y.x * cos.x - x.x * sin.x, y.y * cos.y - x.y * sin.y);
                }
                mma_16x8x16<E>(s[n], a[0], b[0]);
                mma_16x8x16<E>(s[n], a[1], b[1]);
            }
        }
    }

    // Takes tile n's scores into max and sum and makes weights of them.
    __device__ __forceinline__ void softmax(float (&s)[4], int n, int count) {
        if (g >= count) s[0] = s[1] = -INFINITY;
        if (g + 8 >= count) s[2] = s[3] = -INFINITY;
        float keep[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float most = fmaxf(s[i], s[2 + i]);
            for (int mask = 4; mask < WARP; mask *= 2)
                most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
            most = fmaxf(max[n][i], most);
            keep[i] = exp2f(max[n][i] - most);
            s[i] = exp2f(s[i] - most), s[2 + i] = exp2f(s[2 + i] - most);
            max[n][i] = most, sum[n][i] = sum[n][i] * keep[i] + s[i] + s[2 + i];
        }
        if (__ballot_sync(~0u, keep[0] != 1 || keep[1] != 1))
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++)
                for (int i = 0; i < 4; i++) acc[n][f][i] *= keep[i % 2];
    }

    // acc += p c (p: 16 keys, 8 heads), columns from … end − 1.
    __device__ __forceinline__ void add_columns(const float (&s)[Q][4], const E* values, int from,
                                                int end) {
        uint32_t p[Q][2];
#pragma unroll
        for (int n = 0; n < Q; n++)
            for (int i = 0; i < 2; i++)
                p[n][i] = transpose_8x8(pack2<E>(s[n][2 * i], s[n][2 * i + 1]));
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
            if (16 * f < end && 16 * f + 16 > from) {
                uint32_t a[4];
                load_a_transposed(a, values, v.stride(), 0, 16 * f);
                if (16 * f < from || 16 * f + 16 > end)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        a[i] = within(a[i], 16 * f + i % 2 * 8 + g, from, end);
#pragma unroll
                for (int n = 0; n < Q; n++) mma_16x8x16<E>(acc[n][f], a, p[n]);
            }
    }

    // One step: positions s0 … s0 + count − 1, which have arrived in a stage.
    __device__ __forceinline__ void step(const char* from, int s0, int count) {
        const float* angle = reinterpret_cast<const float*>(from);
        const char *keys = from + ANGLE_BYTES, *values = keys + k.shape.stage;
        E* unpacked = reinterpret_cast<E*>(memory);
        float s[Q][4] = {}, rho[2] = {1, 1};
        if (k.shape.groups) {
            k.unpack(unpacked, keys, s0, count, tables.levels, lane, WARP);
            for (int i = 0; i < 2; i++)
                if (g + 8 * i < count) rho[i] = k.scale(keys, s0, g + 8 * i);
            __syncwarp();  // the keys are whole
        }
        if constexpr (ROTATED)
            score(s, k.read(keys, unpacked), rho);
        else
            score_rebuilt(s, k.read(keys, unpacked), rho, angle);
#pragma unroll
        for (int n = 0; n < Q; n++) softmax(s[n], n, count);
        if (v.shape.groups) {
            __syncwarp();  // the keys were read
            v.unpack(unpacked, values, s0, count, tables.levels, lane, WARP);
            for (int i = 0; i < 2; i++)
                if (g + 8 * i < count) rho[i] = v.scale(values, s0, g + 8 * i);
            __syncwarp();  // the values are whole
        }
        if (v.shape.elements) add_columns(s, v.read(values, unpacked), 0, v.shape.elements);
        if (!v.shape.groups) return;
#pragma unroll
        for (int n = 0; n < Q; n++)
            for (int i = 0; i < 4; i++) s[n][i] *= rho[i / 2];
        add_columns(s, unpacked, v.shape.elements, v.shape.columns);
    }

    // ---- stretches

    static constexpr int ANGLE_BYTES = ROTATED ? 0 : D * int(sizeof(float));
    static constexpr int MOST_STAGES = 3;
    // What a warp needs for a stretch: a tile, and stages.
    static __host__ __device__ size_t stage_bytes(const RowStore& keys, const RowStore& values) {
        return ANGLE_BYTES + Tiles::stage_bytes(keys) + Tiles::stage_bytes(values);
    }
    static __host__ __device__ size_t tile_bytes(const RowStore& keys, const RowStore& values) {
        return coded(keys.format) ? Tiles::tile_bytes(keys) : Tiles::tile_bytes(values);
    }

    // A stretch begins: its memory; then, once the tables are there, the queries.
    __device__ __forceinline__ void clear(const RowStore& keys, const RowStore& values, int bytes) {
        // Columns that nobody writes are zero, and rows of codes that are not there: a product must
        // not meet what is no number.
        bool zero = coded(keys.format) || coded(values.format) || elements_of(keys) % 16 ||
                    elements_of(values) % 16;
        for (int i = lane; zero && i < bytes / 16; i += WARP)
            reinterpret_cast<uint4*>(memory)[i] = make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void enter() {
        k.enter(lane), v.enter(lane);
        if constexpr (ROTATED)
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++)
                for (int i = 0; i < 2; i++) {
                    int column = 16 * f + 8 * i + 2 * t;
                    float step = k.step(column);
#pragma unroll
                    for (int n = 0; n < Q; n++) {
                        float2 pair = load_pair(q + (8 * n + g) * Q_STRIDE + column);
                        fragment[n][f][i] = pack2<E>(step * pair.x, step * pair.y);
                    }
                }
        count_in(true);
    }
    // acc counts in the values' steps, or again in ones.
    __device__ __forceinline__ void count_in(bool steps) {
        if (!v.shape.groups) return;
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
            for (int i = 0; i < 2; i++) {
                float step = v.step(16 * f + 8 * i + g), by = steps ? 1 / step : step;
#pragma unroll
                for (int n = 0; n < Q; n++) acc[n][f][2 * i] *= by, acc[n][f][2 * i + 1] *= by;
            }
    }

    // This warp's steps of positions first … end − 1, which lie one behind the other, with as many
    // of its stages on their way as its memory holds.
    __device__ __forceinline__ void run(int first, int end, int bytes) {
        int tile = ::max(k.shape.tile, v.shape.tile);
        int stage = ANGLE_BYTES + k.shape.stage + v.shape.stage;
        int count = min(MOST_STAGES, (bytes - tile) / stage), next = 0, now = 0;
        char* stages = memory + tile;
        int s0 = first + int(threadIdx.x) / WARP * STEP;
        auto begin = [&](int s) {
            if (s < end) {
                char* to = stages + next * stage;
                if (!ROTATED && lane < D / 4)
                    copy_async_16(to + 16 * lane, rotation + size_t(s) * D + 4 * lane, true);
                k.begin(to + ANGLE_BYTES, s, min(STEP, end - s), lane, WARP);
                v.begin(to + ANGLE_BYTES + k.shape.stage, s, min(STEP, end - s), lane, WARP);
            }
            copy_async_commit();
            next = next + 1 == count ? 0 : next + 1;
        };
        for (int i = 0; i < count - 1; i++) begin(s0 + i * SHARE);
        for (int s = s0; s < end; s += SHARE) {
            if (count == 1) begin(s);
            if (count == MOST_STAGES)
                copy_async_wait<1>();
            else
                copy_async_wait<0>();
            __syncwarp();  // every lane's copies of this step are there; the last step was read
            if (count > 1) begin(s + (count - 1) * SHARE);
            step(stages + now * stage, s, min(STEP, end - s));
            now = now + 1 == count ? 0 : now + 1;
            if (count == 1) __syncwarp();  // the only stage was read
        }
        copy_async_wait<0>();
        __syncwarp();  // the stages are free
    }
};

}  // namespace stief
