// One warp's running softmax and sums of values in decode attention (attention_warp.cuh):
//   acc += Cᵀ p in latent coordinates, weights rounded to 16 bits and transposed. Of codes the
//   scale ρ of a row is part of its weight, 2^(s + log₂ ρ − max), and acc counts in the stretch's
//   steps, in the order that coded_fragments.cuh has.
#pragma once
#include "attention_merge.cuh"
#include "attention_warp_keys.cuh"

namespace stief {

// After every step, for each of Q tiles of 8 query heads:
//     max = max (s + log₂ ρ),  sum = Σ 2^(s − max) (this lane's keys),  acc = Σ 2^(s − max) c
// ρ: the scale of a value's codes, or 1, so that no weight 2^(s − max) ρ is more than 1.
template <class E, int D, int Q, bool ROTATED>
struct WarpValues : WarpKeys<E, D, Q, ROTATED> {
    using Keys = WarpKeys<E, D, Q, ROTATED>;
    using Keys::FRAGMENTS, Keys::v, Keys::tables, Keys::memory, Keys::lane, Keys::g, Keys::t;
    float acc[Q][FRAGMENTS][4], max[Q][2], sum[Q][2];  // (coordinates g, g+8) x (heads 2t, 2t+1)
    bool in_codes = false;  // acc is in the order of the stretch's codes, and in their steps

    template <class... Args>
    __device__ __forceinline__ explicit WarpValues(Args&&... args) : Keys(args...) {}
    // No key was met. Apart from the rest: what comes before the first key has a use for registers.
    __device__ __forceinline__ void begin_sums() {
#pragma unroll
        for (int n = 0; n < Q; n++) {
            max[n][0] = max[n][1] = -INFINITY, sum[n][0] = sum[n][1] = 0;
            for (int f = 0; f < FRAGMENTS; f++)
                for (int i = 0; i < 4; i++) acc[n][f][i] = 0;
        }
    }

    // Takes tile n's scores of T · 16 keys, log₂ ρ included, into max and sum and makes weights of
    // them. over: what of ρ they have too much for the sum.
    template <int T>
    __device__ __forceinline__ void softmax(float (&s)[T][Q][4], int n, int count,
                                            const float (&over)[2 * T]) {
        if (count < 16 * T)
#pragma unroll
            for (int i = 0; i < 2 * T; i++)
                if (g + 8 * i >= count)
                    s[i / 2][n][i % 2 * 2] = s[i / 2][n][i % 2 * 2 + 1] = -INFINITY;
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
                            a[i / 2] |= uint32_t(rows.template element<E>(key, at).bits)
                                        << i % 2 * 16;
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
    // The same of values as codes. Weights are 2^(s + more − max), for the sum 2^−more too much.
    // With elements ahead of the codes, whose weights are those of the sum, neither may pass 1.
    template <int T>
    __device__ __forceinline__ void take_coded(float (&s)[T][Q][4], const CodeRows& rows,
                                               int count) {
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
                    for (int h = 0; h < 2; h++) s[i / 2][n][i % 2 * 2 + h] *= power_of_two(log[i]);
        }
        for (float& one : over) one = 1;
        weights<f16>(p, s, over);
        add_codes(acc, p, rows, v.shape.groups, tables.slots, lane);
    }

    // ---- the order of codes

    // The coordinate of fragment f's row `row` or row + 8, while values are codes: those of slot
    // 8c + row; of slots that have no codes the elements, and what is not kept.
    __device__ __forceinline__ int coordinate_of(int f, int eight, int row) const {
        int j = v.shape.elements + ROW_GROUP * (f / 4 * 8 + row) + 2 * (f % 4) + eight;
        return j < D ? j : j - D;
    }
    // Whether this warp has met a key. Before that acc is zero, in any order.
    __device__ __forceinline__ bool any_keys() const {
        return __shfl_sync(~0u, max[0][0], 0) > -INFINITY;
    }
    // Everything of tile n of heads, in the order of coordinates, whatever the order at hand.
    __device__ __forceinline__ void put(float* to, int n) const {
        if (in_codes)
            put_tile<D>(to, max[n], sum[n], acc[n],
                        [&](int f, int row) { return coordinate_of(f, row, g); },
                        [&](int f) { return tables.slots.slot[1][f / 4 * 8 + g].step; });
        else
            put_tile<D>(to, max[n], sum[n], acc[n]);
    }
    // acc as codes want it, in their order and in steps; or again in its own and in ones.
    __device__ __forceinline__ void count_in(bool steps) {
        float* order = reinterpret_cast<float*>(memory);  // (8, D), of a tile of heads
        auto as_codes = [&](int f, int i) {
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
                float step = tables.slots.slot[1][f / 4 * 8 + g].step;
                for (int i = 0; i < 4; i++)
                    steps ? *in_order(f, i) = acc[n][f][i] : *as_codes(f, i) = step * acc[n][f][i];
            }
            __syncwarp();  // the sums are there
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++) {
                float by = tables.slots.slot[1][f / 4 * 8 + g].by_step;
                for (int i = 0; i < 4; i++)
                    acc[n][f][i] = steps ? by * *as_codes(f, i) : *in_order(f, i);
            }
        }
        __syncwarp();  // they were read
    }
};

}  // namespace stief
