// Weighted sums. In tiles of 256 rows p_s ρ_s becomes n_s = round(p_s ρ_s / u), u = max_s |p_s ρ_s|
// / 32767. The error of a coordinate is at most ½ u Σ_s |level_s| Δ: 2⁻¹⁶ of what it would be had
// every row of the tile the largest weight.
#pragma once
#include "backend/cpu/vbmi_rows.h"

namespace stief {
namespace {

void fix_weights(Weights& weights, int h, const float* p, const float* rho, int count) {
    alignas(64) float scaled[TILE];
    __m512 largest = _mm512_setzero_ps(), sum = largest;
    int filled = (count + 15) / 16 * 16;
    for (int s = 0; s < filled; s += 16) {
        __mmask16 some = count - s >= 16 ? 0xffff : V::first(count - s);
        __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, p + s), _mm512_load_ps(rho + s));
        _mm512_store_ps(scaled + s, x);
        largest = _mm512_max_ps(_mm512_abs_ps(x), largest);
        sum = _mm512_add_ps(sum, _mm512_abs_ps(x));
    }
    Fixed<V> fixed(largest, sum, TILE * LARGEST);
    __m512i all = _mm512_setzero_si512();
    for (int s = 0; s < filled; s += 16) {
        __m512i n = _mm512_cvtps_epi32(fixed.scaled(_mm512_load_ps(scaled + s)));
        all = _mm512_add_epi32(all, n);
        _mm256_store_si256(reinterpret_cast<__m256i*>(weights.n[h] + s), _mm512_cvtepi32_epi16(n));
    }
    weights.unit[h] = fixed.unit;
    weights.sum[h] = _mm512_reduce_add_epi32(all);
}

// acc_h += unit Δ (Σ_s n_s (level_s + 128) − 128 Σ_s n_s) for one block of one tile.
template <int M, int C>
void weigh_block(float* acc, size_t acc_stride, const Weights& weights, const char* rows,
                 const RowLayout& layout, const RowLayout::Block& block, int count) {
    __m512i sum[M][C];
    unroll<M * C>([&]<int i>() { sum[i / C][i % C] = _mm512_setzero_si512(); });
    Pairs levels{block, {}};
    for (int s = 0; s < count; s += 2, rows += 2 * layout.bytes) {
        const char* second = rows + (s + 1 < count ? layout.bytes : 0);
        __m512i level[C];
        unroll<C>([&]<int c>() { level[c] = levels(rows, second, c); });
        unroll<M>([&]<int h>() {
            int pair;
            __builtin_memcpy(&pair, weights.n[h] + s, 4);
            __m512i n = _mm512_set1_epi32(pair);
            unroll<C>([&]<int c>() {
                sum[h][c] = _mm512_dpwssd_epi32(sum[h][c], level[c], n);
            });
        });
    }
    unroll<C>([&]<int c>() {
        int first = block.first + 16 * c, left = layout.codes - first;
        __mmask16 some = left >= 16 ? 0xffff : V::first(left);
        __m512 step = _mm512_loadu_ps(layout.step + first);
        unroll<M>([&]<int h>() {
            __m512i all = _mm512_slli_epi32(_mm512_set1_epi32(weights.sum[h]), 7);
            __m512 y = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[h][c], all));
            float* to = acc + size_t(h) * acc_stride + first;
            y = _mm512_mul_ps(y, _mm512_mul_ps(step, _mm512_set1_ps(weights.unit[h])));
            _mm512_mask_storeu_ps(to, some, _mm512_add_ps(y, _mm512_maskz_loadu_ps(some, to)));
        });
    });
}

template <int M>
void weigh_codes(float* acc, size_t acc_stride, const float* p, size_t p_stride, const char* rows,
                 const RowLayout& layout, int count) {
    Weights weights;
    alignas(64) float rho[TILE];
    for (int s = 0; s < count; s += TILE, p += TILE, rows += TILE * layout.bytes) {
        int some = count - s < TILE ? count - s : TILE;
        const char* scale = rows + layout.bytes - 1;
        for (int i = 0; i < some; i++, scale += layout.bytes) rho[i] = layout.rho[uint8_t(*scale)];
        for (int i = some; i % 16; i++) rho[i] = 0;
        for (int h = 0; h < M; h++) fix_weights(weights, h, p + size_t(h) * p_stride, rho, some);
        for (int b = 0; b < layout.blocks; b++) {
            const RowLayout::Block& block = layout.block[b];
            auto weigh = block.pairs == 4   ? weigh_block<M, 4>
                         : block.pairs == 3 ? weigh_block<M, 3>
                         : block.pairs == 2 ? weigh_block<M, 2>
                                            : weigh_block<M, 1>;
            weigh(acc, acc_stride, weights, rows, layout, block, some);
        }
    }
}

}  // namespace
}  // namespace stief
