// Rows of codes as fragments of tensor cores, which lanes make in registers (coded_slots.cuh):
// decode meets each row once. Prefill meets it again and again, and unpacks it to a tile:
// coded_tile.cuh.
//
// A lane (g, t) takes whole groups apart, and columns of a fragment go where that puts them, as a
// product does not ask for the order of what it sums:
//
//   16 keys,    mma m = 0, 1 of four slots i:       16 values, mma m = 0 … 3 of eight slots c:
//   rows        keys g, g + 8                       rows        codes 2m, 2m + 1 of slot 8c + g
//   columns     codes 4m … 4m + 3 of slot 4i + t    columns     keys 2t, 2t + 1, 2t + 8, 2t + 9
//   a[0], a[1]  codes 4m, 4m + 1 of keys g, g + 8   a[0], a[1]  keys 2t, 2t + 1 of both codes
//   a[2], a[3]  codes 4m + 2, 4m + 3 of them        a[2], a[3]  keys 2t + 8, 2t + 9
//
// Queries, and rows of D, are laid out accordingly once a stretch; sums of values are put in order
// when rows of another kind follow, or in the end.
//
// Fragments are f16 whatever the cache's elements: levels are integers of 8 bits. u = level + 128
// behind the byte 0x64 is the number 1024 + u, 1152 + level. Of values a second product takes off what
// 1152 times the weights are, at once, so that sums stay small; of keys after rotation what it adds to a
// score is known: 1152 Σ q, once a stretch. Keys that are rebuilt are multiplied by D, in the type of the
// elements.
#pragma once
#include "coded_slots.cuh"

namespace stief {

// ---- scores ------------------------------------------------------------------------------------

// The queries of a block for a stretch of keys after rotation, in shared memory, as the lanes of a
// warp hold them; for codes multiplied by their columns' steps and by a power of two that puts the
// largest of all below 2^16.
template <class E, int D, int Q>
struct StretchQueries {
    static constexpr int FOURS = D / ROW_GROUP / 4;
    // b[0], b[1] of columns 32 i …, then of those 16 on; of codes of mma 0, 1 of slots 4 i …
    uint4 fragment[FOURS][Q][WARP];
    float sum[FOURS][8 * Q];  // of codes Σ of what is in them, of each head
    float largest[8 * Q];     // |q| of a head

    // log₂ of the power of two.
    __device__ __forceinline__ int exponent() const {
        float most = 0;
        for (float one : largest) most = fmaxf(most, one);
        return min(max(142 - int(__float_as_uint(most) >> 23), -100), 100);
    }
    // By the whole block: q (8 Q, stride). A barrier must follow.
    __device__ void fill(const float* q, int stride, int columns) {
        each(columns, [&](int i, int n, int lane) {
            const float* from = q + (8 * n + lane / 4) * stride + 32 * i + 2 * (lane % 4);
            uint32_t b[4];
            for (int m = 0; m < 4; m++) b[m] = pack2<E>(from[8 * m], from[8 * m + 1]);
            fragment[i][n][lane] = make_uint4(b[0], b[1], b[2], b[3]);
        });
    }
    // The same for `groups` groups of codes, which begin at column `first`.
    __device__ void fill_coded(const float* q, int stride, int first, int groups,
                               const CodeSlot* slots) {
        float unit = power_of_two(float(exponent()));
        each(ROW_GROUP * groups, [&](int i, int n, int lane) {
            int slot = 4 * i + lane % 4, head = 8 * n + lane / 4;
            const float* from = q + head * stride + first + ROW_GROUP * slot;
            float by = slots[slot].step * unit, all = 0;
            uint32_t b[4] = {};
            for (int m = 0; slot < groups && m < 4; m++) {
                b[m] = pack2<f16>(by * from[2 * m], by * from[2 * m + 1]);
                all += to_float(f16{uint16_t(b[m])}) + to_float(f16{uint16_t(b[m] >> 16)});
            }
            fragment[i][n][lane] = make_uint4(b[0], b[1], b[2], b[3]);
            for (int mask = 1; mask < 4; mask *= 2) all += __shfl_xor_sync(~0u, all, mask);
            if (lane % 4 == 0) sum[i][head] = all;
        });
    }

private:
    // f(i, n, lane) of each fragment of so many columns, by a warp.
    template <class F>
    __device__ __forceinline__ static void each(int columns, const F& f) {
#pragma unroll 1
        for (int i = int(threadIdx.x) / WARP; 32 * i < columns; i += int(blockDim.x) / WARP)
            for (int n = 0; n < Q; n++) f(i, n, int(threadIdx.x) % WARP);
    }
};

// s += Σ q (1152 + level) of four slots of 16 T keys. b: Q tiles of WARP.
template <Widths W, int T, int Q>
__device__ __forceinline__ void score_four(float (&s)[T][Q][4], const CodeRows& rows,
                                           const CodeSlot& slot, const uint4 (*b)[WARP], int lane) {
    constexpr uint32_t ABOVE = 0x64646464;  // 1024 + u in f16
    CodeRows::Place place = rows.place<W>(slot, lane / 4);
#pragma unroll
    for (int i = 0; i < T; i++) {
        uint2 x = levels_of<W>(slot, place.next<W>());      // key g
        uint2 y = levels_of<W>(slot, place.next<W>());  // key g + 8
        const uint32_t low[4] = {
            permute_bytes(x.x, ABOVE, 0x4140), permute_bytes(y.x, ABOVE, 0x4140),
            permute_bytes(x.x, ABOVE, 0x4342), permute_bytes(y.x, ABOVE, 0x4342)};
        const uint32_t high[4] = {
            permute_bytes(x.y, ABOVE, 0x4140), permute_bytes(y.y, ABOVE, 0x4140),
            permute_bytes(x.y, ABOVE, 0x4342), permute_bytes(y.y, ABOVE, 0x4342)};
#pragma unroll
        for (int n = 0; n < Q; n++) {
            uint4 two = b[n][lane];
            const uint32_t first[2] = {two.x, two.y}, second[2] = {two.z, two.w};
            mma_16x8x16<f16>(s[i][n], low, first);
            mma_16x8x16<f16>(s[i][n], high, second);
        }
    }
}
template <int T, class E, int D, int Q>
__device__ __forceinline__ void score_codes(float (&s)[T][Q][4], const CodeRows& rows, int groups,
                                            const CodeSlots<D>& slots,
                                            const StretchQueries<E, D, Q>& queries, int lane) {
    const CodeSlot* slot = slots.slot[0] + lane % 4;
    const Widths* widths = slots.keys;
    const uint4(*b)[WARP] = queries.fragment[0];
#pragma unroll 1
    for (const CodeSlot* end = slot + groups; slot < end; slot += 4, widths++, b += Q)
        with_widths(*widths, [&]<Widths W>() { score_four<W>(s, rows, *slot, b, lane); });
}

// ---- keys before rotation ----------------------------------------------------------------------

// Columns of the fragments that so many groups are.
__host__ __device__ constexpr int coded_columns(int groups) {
    return (groups + 3) / 4 * 4 * ROW_GROUP;
}
// Columns of keys of such a format, and rows of D: whole fragments, the elements' behind those of
// the codes.
__host__ __device__ inline int basis_rows(const RowFormat& format) {
    return coded_columns(groups_of(format)) + (int(format.count[0]) + 15) / 16 * 16;
}
// to[0], to[WARP], … ← fragments of the levels of 16 keys before rotation, four slots after four,
// each lane's own; to be multiplied by their rows of D, which lie in this order.
template <class E, int D>
__device__ __forceinline__ void key_fragments(uint4* to, const CodeRows& rows, int groups,
                                              const CodeSlots<D>& slots, int lane) {
#pragma unroll 1
    for (int i = 0; 4 * i < groups; i++, to += 2 * WARP) {
        const CodeSlot& slot = slots.slot[0][4 * i + lane % 4];
        with_widths(slots.keys[i], [&]<Widths W>() {
            CodeRows::Place place = rows.place<W>(slot, lane / 4);
            uint2 x = levels_of<W>(slot, place.next<W>());  // key g
            uint2 y = levels_of<W>(slot, place.next<W>());  // key g + 8
            to[0] = make_uint4(level_pair<E>(x.x, 0), level_pair<E>(y.x, 0), level_pair<E>(x.x, 1),
                               level_pair<E>(y.x, 1));
            to[WARP] = make_uint4(level_pair<E>(x.y, 0), level_pair<E>(y.y, 0),
                                  level_pair<E>(x.y, 1), level_pair<E>(y.y, 1));
        });
    }
}
// The coordinate, of codes, whose row of D is number `row`: that of a column of those fragments.
__host__ __device__ constexpr int code_of_row(int row) {
    int t = row % 8 / 2, code = row / 16 % 2 * 4 + row / 8 % 2 * 2 + row % 2;
    return ROW_GROUP * (row / 32 * 4 + t) + code;
}

// decode (basis_rows, STRIDE) ← D, its rows multiplied by their columns' steps, in the order of
// key_fragments; zero where there is no such column. By the whole block.
template <class E, int D>
__device__ void fill_coded_basis(const Rebuild<E, D>& basis, const CacheRows& k, int elements,
                                 int groups, const CodeSlot* slots) {
    int coded = coded_columns(groups);
    basis.fill_rows(k, coded + (elements + 15) / 16 * 16, [&](int row, int& column, float& step) {
        column = row - coded, step = 1;
        if (row >= coded) return column < elements;
        int code = code_of_row(row);
        column = elements + code, step = slots[code / ROW_GROUP].step;
        return code < ROW_GROUP * groups;
    });
}

// ---- values ------------------------------------------------------------------------------------

// acc += Σ weight · level of slots 8c … 8c + 7 of 16 T values. weight: (16 T keys, 8 heads) as f16.
template <Widths W, int T, int Q, int FRAGMENTS>
__device__ __forceinline__ void add_eight(float (&acc)[Q][FRAGMENTS][4], int c,
                                          const uint32_t (&weight)[T][Q][2], const CodeRows& rows,
                                          const CodeSlot& slot, int lane) {
    constexpr uint32_t ABOVE = 0x64646464;                             // 1024 + u in f16
    constexpr uint32_t BIAS[4] = {0xe480e480, 0xe480e480, 0xe480e480, 0xe480e480};  // −1152
    static_assert(T <= 2);
    CodeRows::Place even = rows.place<W>(slot, 2 * (lane % 4));
    CodeRows::Place odd = rows.place<W>(slot, 2 * (lane % 4) + 1);
#pragma unroll 1
    for (int k = 0; k < T; k++) {  // not unrolled: code met for the first time is what a short step costs
        uint32_t u[2][4];  // of keys from 2t on, from 2t + 8 on
#pragma unroll
        for (int i = 0; i < 2; i++)
            levels_of_two<W>(u[i], slot, even.next<W>(), odd.next<W>());
#pragma unroll
        for (int m = 0; m < 4; m++) {
            const uint32_t a[4] = {
                permute_bytes(u[0][m], ABOVE, 0x4240), permute_bytes(u[0][m], ABOVE, 0x4341),
                permute_bytes(u[1][m], ABOVE, 0x4240), permute_bytes(u[1][m], ABOVE, 0x4341)};
#pragma unroll
            for (int n = 0; n < Q; n++) {
                const uint32_t b[2] = {k ? weight[T - 1][n][0] : weight[0][n][0],
                                       k ? weight[T - 1][n][1] : weight[0][n][1]};
                mma_16x8x16<f16>(acc[n][4 * c + m], a, b);
                mma_16x8x16<f16>(acc[n][4 * c + m], BIAS, b);
            }
        }
    }
}
template <int T, int D, int Q>
__device__ __forceinline__ void add_codes(float (&acc)[Q][D / 16][4],
                                          const uint32_t (&weight)[T][Q][2], const CodeRows& rows,
                                          int groups, const CodeSlots<D>& slots, int lane) {
#pragma unroll
    for (int c = 0; c < D / 64; c++) {
        if (8 * c >= groups) break;
        const CodeSlot& slot = slots.slot[1][8 * c + lane / 4];
        with_widths(slots.values[c],
                    [&]<Widths W>() { add_eight<W>(acc, c, weight, rows, slot, lane); });
    }
}

// How the rows of a stretch lie, in shared memory.
template <int D>
struct StretchRows {
    StretchTables<D> rows;
    CodeSlots<D> slots;
};
// What a block knows of the stretch at hand.
template <class E, int D, int Q>
struct BlockTables : StretchRows<D> {
    LevelTables levels;
    int mean;  // where TurnedMean is (turned_mean.cuh), bytes of the block's memory; 0: no key is less one
    StretchQueries<E, D, Q> queries;
};

}  // namespace stief
