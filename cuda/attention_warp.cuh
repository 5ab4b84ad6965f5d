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
#include "coded_fragments.cuh"

namespace stief {

constexpr int TENSOR_WARPS = 4, TENSOR_BLOCK = TENSOR_WARPS * WARP;
constexpr int SHARE = TENSOR_WARPS * STEP;  // positions: a block's share is a multiple of these

// One warp's work on Q tiles of 8 query heads. After every step, for each of them:
//     max = max (s + log₂ ρ),  sum = Σ 2^(s − max) (this lane's keys),  acc = Σ 2^(s − max) c
// ρ: the scale of a value's codes, or 1, so that no weight 2^(s − max) ρ is more than 1.
template <class E, int D, int Q, bool ROTATED>
struct Warp {
    using Tiles = RowTiles<E, D, STEP>;
    static constexpr int Q_STRIDE = D + 8, FRAGMENTS = D / 16;
    const float *rotation, *q;  // q: shared (8 Q, Q_STRIDE), scaled by log₂ e / √d
    const Rebuild<E, D>& basis;
    const StretchQueries<E, D, Q>& queries;
    const StretchTables<D>& tables;
    const CodeSlots<D>& slots;
    Tiles k, v;    // of the stretch at hand
    char* memory;  // this warp's: widened groups, latents of rebuilt keys, stages
    int lane, g, t;
    float past[Q][2], unit;  // of coded keys' queries: 1152 Σ q; log₂ of what they are multiplied by
    float acc[Q][FRAGMENTS][4], max[Q][2], sum[Q][2];  // (coordinates g, g+8) x (heads 2t, 2t+1)

    __device__ __forceinline__ Warp(const float* angles, const float* heads,
                                    const Rebuild<E, D>& rebuild,
                                    const StretchQueries<E, D, Q>& fragments,
                                    const StretchTables<D>& stretch, const CodeSlots<D>& groups,
                                    char* own)
        : rotation(angles),
          q(heads),
          basis(rebuild),
          queries(fragments),
          tables(stretch),
          slots(groups),
          k{stretch.shape[0], stretch.group[0], 0},
          v{stretch.shape[1], stretch.group[1], 0},
          memory(own) {
        lane = int(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < Q; n++) {
            max[n][0] = max[n][1] = -INFINITY, sum[n][0] = sum[n][1] = 0;
            for (int f = 0; f < FRAGMENTS; f++)
                for (int i = 0; i < 4; i++) acc[n][f][i] = 0;
        }
    }

    // ---- products. T: tiles of 16 keys

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
                        const uint2* two =
                            reinterpret_cast<const uint2*>(&queries.fragment[f / 2][n][lane]);
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
        score_codes(s, rows, k.shape.groups, slots, queries, lane);
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
            key_fragments<E>(latents, rows, groups, slots, lane);
            for (int j = 0; j < k.shape.elements; j += 16)
                latents[(coded + j) / 16 * WARP] = element_fragment(rows, j);
            rows.log2_scales(rho, g);
        }
        for (float& one : rho) one = power_of_two(one);
#pragma unroll 1
        for (int c = 0; c < HALF; c += 16) {
            float lo[2][4] = {}, hi[2][4] = {};
            if (groups) {
                rebuild(lo, hi, latents, 0, coded, c);
#pragma unroll
                for (int n = 0; n < 2; n++)
                    for (int i = 0; i < 4; i++) lo[n][i] *= rho[i / 2], hi[n][i] *= rho[i / 2];
                rebuild(lo, hi, latents, coded, coded + k.shape.elements, c);
            } else {
                basis.product(lo, hi, keys, k.stride(), 0, c, 0, k.shape.columns);
            }
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

    // lo[n], hi[n] (16 keys, 8) += columns c + 8n … and D/2 + c + 8n … of the keys with such latents,
    // columns from … end − 1 of them.
    __device__ __forceinline__ void rebuild(float (&lo)[2][4], float (&hi)[2][4],
                                            const uint4* latents, int from, int end, int c) {
#pragma unroll 2
        for (int j = from; j < end; j += 16) {
            uint4 one = latents[j / 16 * WARP];
            const uint32_t a[4] = {one.x, one.y, one.z, one.w};
            for (int n = 0; n < 2; n++) basis.add(lo[n], hi[n], a, j, c + 8 * n);
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
                    a[i] |= uint32_t(rows.template element<E>(g + i % 2 * 8, column).bits) << 16 * h;
            }
        }
        return make_uint4(a[0], a[1], a[2], a[3]);
    }

    // Takes tile n's scores of T · 16 keys, log₂ ρ included, into max and sum and makes weights of
    // them. over: what of ρ they have too much for the sum.
    template <int T>
    __device__ __forceinline__ void softmax(float (&s)[T][Q][4], int n, int count,
                                            const float (&over)[2 * T]) {
        if (count < 16 * T)
#pragma unroll
            for (int i = 0; i < 2 * T; i++)
                if (g + 8 * i >= count) s[i / 2][n][i % 2 * 2] = s[i / 2][n][i % 2 * 2 + 1] = -INFINITY;
        float keep[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most = fmaxf(s[0][n][h], s[0][n][2 + h]);
            for (int i = 1; i < T; i++) most = fmaxf(most, fmaxf(s[i][n][h], s[i][n][2 + h]));
            for (int mask = 4; mask < WARP; mask *= 2)
                most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
            most = fmaxf(max[n][h], most);
            keep[h] = power_of_two(max[n][h] - most);
            max[n][h] = most, sum[n][h] *= keep[h];
#pragma unroll
            for (int i = 0; i < 2 * T; i++) {
                float& one = s[i / 2][n][i % 2 * 2 + h];
                one = power_of_two(one - most), sum[n][h] += one * over[i];
            }
        }
        if (__ballot_sync(~0u, keep[0] != 1 || keep[1] != 1))
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++)
                for (int i = 0; i < 4; i++) acc[n][f][i] *= keep[i % 2];
    }

    // to ← weights (16 T keys, 8 heads) ⊙ by of each key, as fragments of type F.
    template <class F, int T>
    __device__ __forceinline__ void weights(uint32_t (&to)[T][Q][2], const float (&s)[T][Q][4],
                                            const float (&by)[2 * T]) {
#pragma unroll
        for (int i = 0; i < 2 * T; i++)
#pragma unroll
            for (int n = 0; n < Q; n++) {
                const float* two = s[i / 2][n] + i % 2 * 2;
                to[i / 2][n][i % 2] = transpose_8x8(pack2<F>(by[i] * two[0], by[i] * two[1]));
            }
    }
    // acc += p c of values as elements.
    template <int T>
    __device__ __forceinline__ void add(const uint32_t (&p)[T][Q][2], const E* values) {
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++)
            if (16 * f < v.shape.columns)
#pragma unroll
                for (int i = 0; i < T; i++) {
                    uint32_t a[4];
                    load_a_transposed(a, values, v.stride(), 16 * i, 16 * f);
#pragma unroll
                    for (int n = 0; n < Q; n++) mma_16x8x16<E>(acc[n][f], a, p[i][n]);
                }
    }
    // The same of the elements ahead of codes, which are in slots behind them (coordinate_of).
    template <int T>
    __device__ __forceinline__ void add_elements(const uint32_t (&p)[T][Q][2], const CodeRows& rows,
                                                 int count) {
#pragma unroll
        for (int c = 0; c < D / 64; c++) {
            int j = v.shape.elements + 64 * c + ROW_GROUP * g - D;  // of this lane's slot
            if (__ballot_sync(~0u, j > -ROW_GROUP) == 0) continue;
#pragma unroll 1
            for (int tile = 0; tile < T; tile++)
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    uint32_t a[4] = {};
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        int key = 16 * tile + 2 * t + i / 4 * 8 + i % 2, at = j + 2 * m + i / 2 % 2;
                        if (at >= 0 && key < count)
                            a[i / 2] |= uint32_t(rows.template element<E>(key, at).bits) << i % 2 * 16;
                    }
#pragma unroll
                    for (int n = 0; n < Q; n++) {
                        uint32_t weight[2];
                        for (int i = 0; i < 2; i++) weight[i] = tile ? p[T - 1][n][i] : p[0][n][i];
                        mma_16x8x16<E>(acc[n][4 * c + m], a, weight);
                    }
                }
        }
    }

    // One step: positions s0 … s0 + count − 1, which have arrived in a stage, at most 16 T.
    template <int T>
    __device__ __forceinline__ void step(const char* from, int s0, int count) {
        constexpr bool CODES = T > 1 || !ROTATED;
        const float* angle = reinterpret_cast<const float*>(from);
        const char *keys = from + ANGLE_BYTES, *values = keys + k.shape.stage;
        CodeRows coded_k = rows_of(k, keys, s0, 0), coded_v = rows_of(v, values, s0, 1);
        if (CODES && slots.wide[0] + slots.wide[1]) {
            widen<T>(coded_k, k.group, 0);
            widen<T>(coded_v, v.group, 1);
            __syncwarp();  // the widened groups are there
        }
        float s[T][Q][4] = {};
        if constexpr (!ROTATED)
            score_rebuilt(s[0], reinterpret_cast<const E*>(keys), coded_k, angle);
        else if (CODES && k.shape.groups)
            score_coded(s, coded_k);
        else
            score(s, reinterpret_cast<const E*>(keys));
        if (CODES && v.shape.groups)
            take_coded(s, coded_v, count);
        else
            take(s, reinterpret_cast<const E*>(values), count);
    }
    template <int T>
    __device__ __forceinline__ void widen(const CodeRows& rows, const CodeGroup* group, int side) {
        if (int count = slots.wide[side])
            rows.template widen<T>(memory + rows.wide, group + slots.first_wide[side], count,
                                   tables.levels, lane);
    }

    // What scores make of values as elements.
    template <int T>
    __device__ __forceinline__ void take(float (&s)[T][Q][4], const E* values, int count) {
        float ones[2 * T];
        for (float& one : ones) one = 1;
#pragma unroll
        for (int n = 0; n < Q; n++) softmax(s, n, count, ones);
        uint32_t p[T][Q][2];
        weights<E>(p, s, ones);
        add(p, values);
    }
    // The same of values as codes. Weights are 2^(s + more − max), for the sum 2^−more too much. With
    // elements ahead of the codes, whose weights are those of the sum, neither may pass 1.
    template <int T>
    __device__ __forceinline__ void take_coded(float (&s)[T][Q][4], const CodeRows& rows, int count) {
        float log[2 * T], over[2 * T];
        rows.log2_scales(log, g);
#pragma unroll
        for (int i = 0; i < 2 * T; i++) {
            float more = v.shape.elements ? fmaxf(log[i], 0) : log[i];
            over[i] = power_of_two(-more), log[i] -= more;
#pragma unroll
            for (int n = 0; n < Q; n++)
                for (int h = 0; h < 2; h++) s[i / 2][n][i % 2 * 2 + h] += more;
        }
#pragma unroll
        for (int n = 0; n < Q; n++) softmax(s, n, count, over);
        uint32_t p[T][Q][2];
        if (v.shape.elements) {
            weights<E>(p, s, over);
            add_elements(p, rows, count);
#pragma unroll
            for (int i = 0; i < 2 * T; i++)
                for (int n = 0; n < Q; n++)
                    for (int h = 0; h < 2; h++)
                        s[i / 2][n][i % 2 * 2 + h] *= power_of_two(log[i]);
        }
        for (float& one : over) one = 1;
        weights<f16>(p, s, over);
        add_codes(acc, p, rows, v.shape.groups, slots, lane);
    }

    // ---- stretches

    static constexpr int ANGLE_BYTES = ROTATED ? 0 : D * int(sizeof(float));
    static constexpr int MOST_STAGES = 3;
    // Keys of a step: more of codes, so that what a step costs is for more. Not of keys before
    // rotation, which turn by their distance from the step's first.
    static __host__ __device__ int step_of(const RowStore& keys, const RowStore& values) {
        return ROTATED && (coded(keys.format) || coded(values.format)) ? CODED_STEP : STEP;
    }
    // What a warp needs for a stretch: what lies ahead of the stages, and stages.
    static __host__ __device__ size_t stage_bytes(const RowStore& keys, const RowStore& values) {
        int rows = step_of(keys, values);
        return ANGLE_BYTES + Tiles::stage_bytes(keys, rows) + Tiles::stage_bytes(values, rows);
    }
    static __host__ __device__ size_t front_bytes(const RowStore& keys, const RowStore& values) {
        size_t wide = size_t(groups_to_widen(keys.format) + groups_to_widen(values.format));
        size_t latents = ROTATED || !coded(keys.format) ? 0 : size_t(basis_rows(keys.format) / 16);
        return wide * WIDENED + latents * WARP * sizeof(uint4);
    }
    static constexpr size_t ORDERING = 8 * D * sizeof(float);  // and to put sums in order
    __device__ __forceinline__ int wide_end() const {
        return (slots.wide[0] + slots.wide[1]) * WIDENED;
    }
    // A side's rows in a stage; from `memory` on, groups of keys are widened, then of values.
    __device__ __forceinline__ CodeRows rows_of(const Tiles& one, const char* stage, int s,
                                                int side) const {
        return {memory, unsigned(one.codes_at(stage, s) - memory),
                unsigned(side ? slots.wide[0] * WIDENED : 0), unsigned(one.shape.bytes)};
    }

    // A stretch begins, the tables and the queries' fragments are there.
    __device__ __forceinline__ void enter(const RowStore& keys, const RowStore& values, int bytes) {
        if (ROTATED && k.shape.groups) {
            unit = float(queries.exponent());
#pragma unroll
            for (int n = 0; n < Q; n++)
                for (int h = 0; h < 2; h++) {
                    past[n][h] = 0;
                    for (int i = 0; 4 * i < k.shape.groups; i++)
                        past[n][h] += 1152 * queries.sum[i][8 * n + 2 * t + h];
                }
        }
        if (v.shape.groups) count_in(true);
        // Columns that nobody writes are zero, and rows of codes that are not there: a product must
        // not meet what is no number.
        bool zero = coded(keys.format) || coded(values.format) || elements_of(keys) % 16 ||
                    elements_of(values) % 16;
#pragma unroll 1
        for (int i = lane; zero && i < bytes / 16; i += WARP)
            reinterpret_cast<uint4*>(memory)[i] = make_uint4(0, 0, 0, 0);
        __syncwarp();  // the memory is zero
    }
    __device__ __forceinline__ void leave() {
        if (v.shape.groups) count_in(false);
    }

    // The coordinate of fragment f's row `row` or row + 8, while values are codes: those of slot
    // 8c + row; of slots that have no codes the elements, and what is not kept.
    __device__ __forceinline__ int coordinate_of(int f, int eight, int row) const {
        int j = v.shape.elements + ROW_GROUP * (f / 4 * 8 + row) + 2 * (f % 4) + eight;
        return j < D ? j : j - D;
    }
    // acc as codes want it, in their order and in steps; or again in its own and in ones.
    __device__ __forceinline__ void count_in(bool steps) {
        float* order = reinterpret_cast<float*>(memory);  // (8, D), of a tile of heads
        auto in_codes = [&](int f, int i) {
            return order + (2 * t + i % 2) * D + coordinate_of(f, i / 2, g);
        };
        auto in_order = [&](int f, int i) {
            return order + (2 * t + i % 2) * D + 16 * f + i / 2 * 8 + g;
        };
#pragma unroll
        for (int n = 0; n < Q; n++) {
            __syncwarp();  // the memory is free
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++) {
                float step = slots.slot[1][f / 4 * 8 + g].step;
                for (int i = 0; i < 4; i++)
                    steps ? *in_order(f, i) = acc[n][f][i] : *in_codes(f, i) = step * acc[n][f][i];
            }
            __syncwarp();  // the sums are there
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++) {
                float by = slots.slot[1][f / 4 * 8 + g].by_step;
                for (int i = 0; i < 4; i++)
                    acc[n][f][i] = steps ? by * *in_codes(f, i) : *in_order(f, i);
            }
        }
        __syncwarp();  // they were read
    }

    // This warp's steps of positions first … end − 1, which lie one behind the other, with as many
    // of its stages on their way as its memory holds.
    __device__ __forceinline__ void run(int first, int end, int bytes) {
        if (ROTATED && (k.shape.groups || v.shape.groups))
            run_steps<CODED_STEP / STEP>(first, end, bytes);
        else
            run_steps<1>(first, end, bytes);
    }
    template <int T>
    __device__ __forceinline__ void run_steps(int first, int end, int bytes) {
        constexpr int KEYS = T * STEP, ON = TENSOR_WARPS * KEYS;
        int front = wide_end();
        if (!ROTATED && k.shape.groups)
            front += (coded_columns(k.shape.groups) + (k.shape.elements + 15) / 16 * 16) / 16 * WARP *
                     int(sizeof(uint4));
        int stage = ANGLE_BYTES + k.shape.stage + v.shape.stage;
        int count = min(MOST_STAGES, (bytes - front) / stage), now = 0;
        char* stages = memory + front;
        int s0 = first + int(threadIdx.x) / WARP * KEYS;
        auto begin = [&](int s, int at) {
            if (s < end) {
                char* to = stages + at * stage;
                if (!ROTATED && lane < D / 4)
                    copy_async_16(to + 16 * lane, rotation + size_t(s) * D + 4 * lane, true);
                int there = min(KEYS, end - s);
                k.begin(to + ANGLE_BYTES, s, there, lane, WARP, KEYS);
                v.begin(to + ANGLE_BYTES + k.shape.stage, s, there, lane, WARP, KEYS);
            }
            copy_async_commit();
        };
#pragma unroll 1
        for (int i = 0; i < count - 1; i++) begin(s0 + i * ON, i);
#pragma unroll 1
        for (int s = s0; s < end; s += ON) {
            if (count == 1) begin(s, 0);
            if (count == MOST_STAGES)
                copy_async_wait<1>();
            else
                copy_async_wait<0>();
            __syncwarp();  // every lane's copies of this step are there; the last step was read
            if (count > 1) begin(s + (count - 1) * ON, now ? now - 1 : count - 1);
            step<T>(stages + now * stage, s, min(KEYS, end - s));
            now = now + 1 == count ? 0 : now + 1;
            if (count == 1) __syncwarp();  // the only stage was read
        }
        copy_async_wait<0>();
        __syncwarp();  // the stages are free
    }
};

}  // namespace stief
