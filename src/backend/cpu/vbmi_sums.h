// Weighted sums. In tiles of 256 rows p_s ρ_s becomes n_s = round(p_s ρ_s / u), u = max_s |p_s ρ_s|
// / 32639. The error of a coordinate is at most ½ u Σ_s |level_s| Δ: 2⁻¹⁶ of what it would be had
// every row of the tile the largest weight.
#pragma once
#include "backend/cpu/vbmi_rows.h"

namespace stief {
namespace {

// One tile's weights as integers, n = 256 high + low, beyond the last row zero up to a multiple of 16.
struct Weights {
    alignas(64) int8_t high[HEADS][TILE], low[HEADS][TILE];
    float unit[HEADS];
    int sum[HEADS];                          // Σ n
};

void fix_weights(Weights& weights, int h, const float* p, const float* rho, int count) {
    alignas(64) float scaled[TILE];
    __m512 largest = _mm512_setzero_ps(), sum = largest;
    for (int s = 0; s < count; s += 16) {
        __mmask16 some = count - s >= 16 ? 0xffff : V::first(count - s);
        __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, p + s), _mm512_load_ps(rho + s));
        _mm512_store_ps(scaled + s, x);
        largest = _mm512_max_ps(_mm512_abs_ps(x), largest);
        sum = _mm512_add_ps(sum, _mm512_abs_ps(x));
    }
    Fixed<V> fixed(largest, sum, LARGEST_PAIR, TILE * LARGEST_PAIR);
    __m512i all = _mm512_setzero_si512();
    for (int s = 0; s < count; s += 16) {
        __m512 x = fixed.scaled(_mm512_load_ps(scaled + s));     // NaN is in the unit already
        __m512i n = _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x);
        all = _mm512_add_epi32(all, n);
        store_bytes(weights.high[h] + s, weights.low[h] + s, n);
    }
    weights.unit[h] = fixed.unit;
    weights.sum[h] = _mm512_reduce_add_epi32(all);
}

// acc_h += unit Δ (Σ_s n_s (level_s + 128) − 128 Σ_s n_s) for one block of one tile.
template <int M, int C, bool CLOSE>
void weigh_block(float* acc, size_t acc_stride, const Weights& weights, const char* rows,
                 const RowLayout& layout, const RowLayout::Block& block, int count) {
    Sums high[M][C] = {}, low[M][C] = {};
    BiasedLevels levels;
    ByCode codes{block};
    auto four_weights = [](const int8_t* n) {
        int four;
        __builtin_memcpy(&four, n, 4);
        return _mm512_set1_epi32(four);
    };
    rows += block.offset;
    for (int s = 0; s < count; s += 4, rows += 4 * layout.bytes) {
        FourRows<CLOSE> x(rows, layout.bytes, count - s);
        __m512i level[C];
        unroll<C>([&]<int c>() { level[c] = codes(x, levels, c); });
        unroll<M>([&]<int h>() {
            __m512i above = four_weights(weights.high[h] + s), n = four_weights(weights.low[h] + s);
            unroll<C>([&]<int c>() {
                high[h][c] = add_products(high[h][c], level[c], above);
                low[h][c] = add_products(low[h][c], level[c], n);
            });
        });
    }
    unroll<C>([&]<int c>() {
        int first = block.first + 16 * c, left = layout.codes - first;
        __mmask16 some = left >= 16 ? 0xffff : V::first(left);
        __m512 step = _mm512_loadu_ps(layout.step + first);
        unroll<M>([&]<int h>() {
            __m512i bias = _mm512_slli_epi32(_mm512_set1_epi32(weights.sum[h]), 7);
            __m512i whole = _mm512_sub_epi32(from_bytes(high[h][c], low[h][c]), bias);
            __m512 y = _mm512_cvtepi32_ps(whole);
            float* to = acc + size_t(h) * acc_stride + first;
            y = _mm512_mul_ps(y, _mm512_mul_ps(step, _mm512_set1_ps(weights.unit[h])));
            _mm512_mask_storeu_ps(to, some, _mm512_add_ps(y, _mm512_maskz_loadu_ps(some, to)));
        });
    });
}

template <int M, bool CLOSE>
void weigh_tile(float* acc, size_t acc_stride, const Weights& weights, const char* rows,
                const RowLayout& layout, int count) {
    for (int b = 0; b < layout.blocks; b++) {
        const RowLayout::Block& block = layout.block[b];
        auto weigh = block.sixteens == 2 ? weigh_block<M, 2, CLOSE> : weigh_block<M, 1, CLOSE>;
        weigh(acc, acc_stride, weights, rows, layout, block, count);
    }
}

template <int M>
void weigh_codes(float* acc, size_t acc_stride, const float* p, size_t p_stride, const char* rows,
                 const RowLayout& layout, int count) {
    Weights weights;
    alignas(64) float rho[TILE];
    auto weigh = layout.close ? weigh_tile<M, true> : weigh_tile<M, false>;
    for (int s = 0; s < count; s += TILE, p += TILE, rows += TILE * layout.bytes) {
        int some = count - s < TILE ? count - s : TILE;
        const char* scale = rows + layout.bytes - 1;
        for (int i = 0; i < some; i++, scale += layout.bytes) rho[i] = layout.rho[uint8_t(*scale)];
        for (int i = some; i % 16; i++) rho[i] = 0;
        for (int h = 0; h < M; h++) fix_weights(weights, h, p + size_t(h) * p_stride, rho, some);
        weigh(acc, acc_stride, weights, rows, layout, some);
    }
}

}  // namespace
}  // namespace stief
