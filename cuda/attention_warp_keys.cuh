// One warp's scores of decode attention on tensor cores, and what it has besides
// (attention_warp.cuh):
//   keys after rotation    s = C (q Dᵀ)ᵀ: the latents as they lie are the fragments; where they are
//                          codes, q Dᵀ has been multiplied by their steps and s is by the scales
//   keys before rotation   the 16 keys are rebuilt, μ + C D, and rotated by their distance from the
//                          step's first position p, 0 … 15 (a table of the block); q is rotated
//                          back by p:
//                          q · R_{p+i} k = (R_pᵀ q) · (R_i k), since RoPE's angles are linear in
//                          the position. A table row for each key would be d·4 bytes a key, more
//                          than its latents; so it is one for 16.
//   less a turned mean     coded keys after rotation: what they lost is added (turned_mean.cuh)
#pragma once
#include "coded_fragments.cuh"
#include "turned_mean.cuh"

namespace stief {

// What a warp knows, and its scores. T: tiles of 16 keys.
template <class E, int D, int Q, bool ROTATED>
struct WarpKeys {
    using Tiles = RowTiles<E, D, STEP>;
    static constexpr int Q_STRIDE = D + 8, FRAGMENTS = D / 16, ELEMENT = int(sizeof(E));
    static constexpr int AT_ONCE = 4;  // eights of columns that are rebuilt: products that wait for none
                                       // of the others
    const float *rotation, *q;  // q: shared (8 Q, Q_STRIDE), scaled by log₂ e / √d
    const Rebuild<E, D>& basis;
    const BlockTables<E, D, Q>& tables;
    Tiles k, v;    // of the stretch at hand
    char* memory;  // this warp's: widened groups, latents of rebuilt keys, stages
    int lane, g, t;
    float past[Q][2], unit;  // of coded keys' queries: 1152 Σ q; log₂ of what multiplies them

    __device__ __forceinline__ WarpKeys(const float* angles, const float* queries,
                                        const Rebuild<E, D>& rebuild,
                                        const BlockTables<E, D, Q>& shared, char* own)
        : rotation(angles),
          q(queries),
          basis(rebuild),
          tables(shared),
          k{shared.rows.shape[0], shared.rows.group[0], 0},
          v{shared.rows.shape[1], shared.rows.group[1], 0},
          memory(own) {
        lane = int(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
    }

    // Of coded keys after rotation: what their queries add, once a stretch.
    __device__ __forceinline__ void enter_queries() {
        unit = float(tables.queries.exponent());
#pragma unroll
        for (int n = 0; n < Q; n++)
            for (int h = 0; h < 2; h++) {
                past[n][h] = 0;
                for (int i = 0; 4 * i < k.shape.groups; i++)
                    past[n][h] += 1152 * tables.queries.sum[i][8 * n + 2 * t + h];
            }
    }
    // Bytes of widened groups.
    __device__ __forceinline__ int wide_end() const {
        return (tables.slots.wide[0] + tables.slots.wide[1]) * WIDENED;
    }

    // s (16 T keys, 8 heads): of keys after rotation, as elements.
    template <int T>
    __device__ __forceinline__ void score(float (&s)[T][Q][4], const E* keys) {
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
            if (16 * f < k.shape.columns)
#pragma unroll
                for (int i = 0; i < T; i++) {
                    uint32_t a[4];
                    load_a(a, keys, k.stride(), 16 * i, 16 * f);
#pragma unroll
                    for (int n = 0; n < Q; n++) {
                        const uint2* two = reinterpret_cast<const uint2*>(
                            &tables.queries.fragment[f / 2][n][lane]);
                        const uint32_t b[2] = {two[f % 2].x, two[f % 2].y};
                        mma_16x8x16<E>(s[i][n], a, b);
                    }
                }
    }
    // The same as codes, and what elements there are ahead of them.
    template <int T>
    __device__ __forceinline__ void score_coded(float (&s)[T][Q][4], const CodeRows& rows) {
        float log[2 * T];
#pragma unroll
        for (int i = 0; i < 4 * T * Q; i++)
            s[i / 4 / Q][i / 4 % Q][i % 4] = -past[i / 4 % Q][i % 2];
        score_codes(s, rows, k.shape.groups, tables.slots, tables.queries, lane);
        rows.log2_scales(log, g);
#pragma unroll
        for (int i = 0; i < 2 * T; i++) {
            float rho = power_of_two(log[i] - unit);
#pragma unroll
            for (int n = 0; n < Q; n++)
                for (int h = 0; h < 2; h++) s[i / 2][n][i % 2 * 2 + h] *= rho;
        }
#pragma unroll 1
        for (int j = 0; j < k.shape.elements; j++)
#pragma unroll
            for (int i = 0; i < 2 * T; i++) {
                float c = to_float(rows.template element<E>(g + 8 * i, j));
#pragma unroll
                for (int n = 0; n < Q; n++)
                    for (int h = 0; h < 2; h++)
                        s[i / 2][n][i % 2 * 2 + h] += q[(8 * n + 2 * t + h) * Q_STRIDE + j] * c;
            }
    }

    // Keys before rotation, rebuilt from their latents: elements, or rows of codes.
    //   angle: shared (D)  cosines, sines of the first position
    __device__ __forceinline__ void score_rebuilt(float (&s)[Q][4], const E* keys,
                                                  const CodeRows& rows, const float* angle) {
        constexpr int HALF = D / 2;
        int groups = k.shape.groups, coded = coded_columns(groups);
        float rho[2] = {0, 0};
        uint4* latents = reinterpret_cast<uint4*>(memory + wide_end()) + lane;  // a lane's own
        if (groups) {
            key_fragments<E>(latents, rows, groups, tables.slots, lane);
            for (int j = 0; j < k.shape.elements; j += 16)
                latents[(coded + j) / 16 * WARP] = element_fragment(rows, j);
            rows.log2_scales(rho, g);
        }
        for (float& one : rho) one = power_of_two(one);
#pragma unroll 1
        for (int c = 0; c < HALF; c += 8 * AT_ONCE) {
            float lo[AT_ONCE][4] = {}, hi[AT_ONCE][4] = {};
            if (groups) {
                rebuild(lo, hi, latents, 0, coded, c);
#pragma unroll
                for (int n = 0; n < AT_ONCE; n++)
                    for (int i = 0; i < 4; i++) lo[n][i] *= rho[i / 2], hi[n][i] *= rho[i / 2];
                rebuild(lo, hi, latents, coded, coded + k.shape.elements, c);
            } else {
                basis.product(lo, hi, keys, k.stride(), 0, c, 0, k.shape.columns);
            }
#pragma unroll
            for (int two = 0; two < AT_ONCE; two += 2) {
                basis.add_mean(lo + two, hi + two, c + 8 * two);
                score_sixteen(s, lo + two, hi + two, angle, c + 8 * two);
            }
        }
    }
    // s += the scores of 16 keys' columns c … c + 15 and D/2 + c …, rebuilt and still to be rotated.
    __device__ __forceinline__ void score_sixteen(float (&s)[Q][4], const float (*lo)[4],
                                                  const float (*hi)[4], const float* angle, int c) {
        constexpr int HALF = D / 2;
        uint32_t a[2][4];  // keys, columns from c and from D/2 + c
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {  // keys g, g + 8
                const float* by = basis.angles + (g + 8 * i) * basis.STRIDE + c + 8 * n + 2 * t;
                float2 cos = load_pair(by), sin = load_pair(by + HALF);
                const float *x = lo[n] + 2 * i, *y = hi[n] + 2 * i;
                a[0][2 * n + i] =
                    pack2<E>(x[0] * cos.x - y[0] * sin.x, x[1] * cos.y - y[1] * sin.y);
                a[1][2 * n + i] =
                    pack2<E>(y[0] * cos.x + x[0] * sin.x, y[1] * cos.y + x[1] * sin.y);
            }
#pragma unroll
        for (int n = 0; n < Q; n++) {
            uint32_t b[2][2];
            turned_pairs<E>(b, q + (8 * n + g) * Q_STRIDE, angle, HALF, c + 2 * t);
            mma_16x8x16<E>(s[n], a[0], b[0]);
            mma_16x8x16<E>(s[n], a[1], b[1]);
        }
    }

    // lo[n], hi[n] (16 keys, 8) += columns c + 8n … and D/2 + c + 8n … of the keys with such
    // latents, columns from … end − 1 of them.
    __device__ __forceinline__ void rebuild(float (&lo)[AT_ONCE][4], float (&hi)[AT_ONCE][4],
                                            const uint4* latents, int from, int end, int c) {
#pragma unroll 2
        for (int j = from; j < end; j += 16) {
            uint4 one = latents[j / 16 * WARP];
            const uint32_t a[4] = {one.x, one.y, one.z, one.w};
            for (int n = 0; n < AT_ONCE; n++) basis.add(lo[n], hi[n], a, j, c + 8 * n);
        }
    }
    // A fragment (16 keys, 16) of elements ahead of codes, from column j on.
    __device__ __forceinline__ uint4 element_fragment(const CodeRows& rows, int j) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[i] = 0;
            for (int h = 0; h < 2; h++) {
                int column = j + i / 2 * 8 + 2 * t + h;
                if (column < k.shape.elements)
                    a[i] |= uint32_t(rows.template element<E>(g + i % 2 * 8, column).bits)
                            << 16 * h;
            }
        }
        return make_uint4(a[0], a[1], a[2], a[3]);
    }
};

}  // namespace stief
