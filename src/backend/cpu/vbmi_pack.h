// What scales cost a row that is packed (coded_impl.h), with levels looked up 64 at a time: they are
// symmetric, so that of |x| in halves of a step, a byte, the nearest one's size is enough, and two
// lookups of 128 bytes find it; no load of a table for each coordinate.
#pragma once
#include "backend/cpu/vbmi_rows.h"

namespace stief {
namespace {

struct SizeCosts {
    template <int N>
    void operator()(__m512 (&sum)[N], const CodedRow& row, const Scales<N>& scales) const {
        const RowLayout& layout = row.layout;
        for (int i = 0; i < row.filled; i += 64) {
            __m512 size[4], halves[4];
            __m512i sign[4];
            unroll<4>([&]<int r>() {
                __m512 x = of_filled(row.x, row, i + 16 * r);
                size[r] = _mm512_abs_ps(x), sign[r] = _mm512_srai_epi32(_mm512_castps_si512(x), 31);
                halves[r] = _mm512_mul_ps(size[r], of_filled(layout.halves, row, i + 16 * r));
            });
            __m512i index[N], level[N];
            unroll<N>([&]<int k>() {
                __m512i h[4];
                __m512 inverse = _mm512_set1_ps(scales.inverse[k]);
                unroll<4>([&]<int r>() { h[r] = _mm512_cvttps_epi32(_mm512_mul_ps(halves[r], inverse)); });
                index[k] = _mm512_packus_epi16(_mm512_packus_epi32(h[0], h[1]),
                                               _mm512_packus_epi32(h[2], h[3]));
                level[k] = _mm512_setzero_si512();
            });
            const RowLayout::Widths& widths = layout.widths[i / 64];
            __mmask64 below = widths.eight & _mm512_movepi8_mask(_mm512_packs_epi16(
                _mm512_packs_epi32(sign[0], sign[1]), _mm512_packs_epi32(sign[2], sign[3])));
            for (int w = 0; w < widths.count; w++) {
                __m512i table[4];
                unroll<4>([&]<int r>() { table[r] = _mm512_loadu_si512(widths.one[w].size + 64 * r); });
                unroll<N>([&]<int k>() {
                    __m512i low = _mm512_permutex2var_epi8(table[0], index[k], table[1]);
                    __m512i high = _mm512_permutex2var_epi8(table[2], index[k], table[3]);
                    __mmask64 upper = _mm512_movepi8_mask(index[k]), some = widths.one[w].mask;
                    level[k] = _mm512_mask_mov_epi8(level[k], some, _mm512_mask_mov_epi8(low, upper, high));
                });
            }
            if (below) unroll<N>([&]<int k>() {          // −128, and not −127
                __mmask64 last = _mm512_mask_cmpeq_epi8_mask(below, index[k], _mm512_set1_epi8(-1));
                level[k] = _mm512_mask_add_epi8(level[k], last, level[k], _mm512_set1_epi8(1));
            });
            __m512 cell[4], weight[4];
            unroll<4>([&]<int r>() {
                cell[r] = of_filled(layout.cell, row, i + 16 * r);
                weight[r] = of_filled(row.weight, row, i + 16 * r);
            });
            unroll<N>([&]<int k>() {
                __m512i zero = _mm512_setzero_si512();
                __m512i low = _mm512_unpacklo_epi8(level[k], zero);
                __m512i high = _mm512_unpackhi_epi8(level[k], zero);
                __m512i of[4] = {_mm512_unpacklo_epi16(low, zero), _mm512_unpackhi_epi16(low, zero),
                                 _mm512_unpacklo_epi16(high, zero), _mm512_unpackhi_epi16(high, zero)};
                __m512 rho = _mm512_set1_ps(scales.rho[k]);
                unroll<4>([&]<int r>() {
                    __m512 step = _mm512_mul_ps(rho, cell[r]);
                    __m512 error = _mm512_fnmadd_ps(step, _mm512_cvtepi32_ps(of[r]), size[r]);
                    sum[k] = _mm512_fmadd_ps(_mm512_mul_ps(weight[r], error), error, sum[k]);
                });
            });
        }
    }

  private:
    static __m512 of_filled(const float* x, const CodedRow& row, int i) {
        return i < row.filled ? _mm512_loadu_ps(x + i) : _mm512_setzero_ps();
    }
};

}  // namespace

void pack_rows_vbmi(void* rows, const float* x, size_t x_stride, const float* weight,
                    const RowLayout& layout, int count) {
    pack_rows<V, SizeCosts>(rows, x, x_stride, weight, layout, count);
}

}  // namespace stief
