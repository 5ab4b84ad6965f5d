// Rows of mixed widths with VBMI and VNNI: codes go from their bits to 16-bit words in four
// instructions, whatever their widths, and are multiplied as integers. Compiled with its own flags;
// joins AVX-512's table in isa.cpp.
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wunknown-warning-option"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "backend/cpu/vbmi_product.h"
#include "backend/cpu/vbmi_scores.h"
#include "backend/cpu/vbmi_sums.h"

namespace stief {
namespace {

// 16 coordinates of one row of a pair as f32: step level.
void store_levels(float* to, __m512i biased, __m512 step, __mmask16 some) {
    __m512i level = _mm512_sub_epi32(biased, _mm512_set1_epi32(Levels::BIAS));
    _mm512_mask_storeu_ps(to, some, _mm512_mul_ps(step, _mm512_cvtepi32_ps(level)));
}

}  // namespace

// Each column of Δ D in the unit that its largest element asks for, or the largest sum.
void code_panel_vbmi(void* memory, const float* D, const float* mean, const RowLayout& layout, int d) {
    CodePanel panel(memory, layout, d);
    for (int c = 0; c < d; c += 16) {
        __mmask16 some = d - c >= 16 ? 0xffff : V::first(d - c);
        auto row = [&](int i) {
            return _mm512_maskz_loadu_ps(some, D + size_t(i) * size_t(d) + c);
        };
        auto scaled = [&](int i) {
            return _mm512_mul_ps(row(layout.whole + i), _mm512_set1_ps(layout.step[i]));
        };
        for (int i = 0; i < layout.whole; i++)
            _mm512_storeu_ps(panel.whole + size_t(i) * panel.columns + c, row(i));
        __m512 most = _mm512_setzero_ps(), sum = most;
        for (int i = 0; i < layout.codes; i++) {
            __m512 size = _mm512_abs_ps(scaled(i));
            most = _mm512_max_ps(size, most), sum = _mm512_add_ps(sum, size);
        }
        __m512 unit = _mm512_max_ps(_mm512_mul_ps(most, _mm512_set1_ps(1 / LARGEST)),
                                    _mm512_mul_ps(sum, _mm512_set1_ps(1 / MOST_IN_SUM)));
        __mmask16 used = _mm512_cmp_ps_mask(unit, _mm512_set1_ps(0x1p-120f), _CMP_GE_OQ);
        __m512 inverse = _mm512_maskz_div_ps(used, _mm512_set1_ps(1), unit);
        __mmask16 bad = _mm512_cmp_ps_mask(sum, _mm512_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
        unit = _mm512_mask_mov_ps(_mm512_maskz_mov_ps(used, unit), bad,
                                  _mm512_set1_ps(__builtin_nanf("")));
        _mm512_storeu_ps(panel.unit + c, unit);
        _mm512_storeu_ps(panel.mean + c, mean ? _mm512_maskz_loadu_ps(some, mean + c) : _mm512_setzero_ps());
        char* to = panel.n + size_t(c) * 4;
        for (int i = 0; i < layout.codes; i += 2, to += panel.columns * 4) {
            __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(scaled(i), inverse));
            __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(scaled(i + 1), inverse));
            first = _mm512_and_si512(first, _mm512_set1_epi32(0xffff));
            _mm512_storeu_si512(to, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
        }
    }
}

void coded_product_vbmi(float* out, size_t out_stride, const void* rows, const void* memory,
                        const RowLayout& layout, int count, int d) {
    constexpr int LANES = V::W * V::COLUMNS;
    alignas(64) int16_t words[16 * RowLayout::MOST];
    alignas(64) float rho[16], wide[RowLayout::MOST];
    const char* at = static_cast<const char*>(rows);
    CodePanel panel(memory, layout, d);
    for (int s = 0; s < count; s += 16, out += 16 * out_stride, at += 16 * layout.bytes) {
        int some = count - s < 16 ? count - s : 16;
        Last all;
        for (int i = 0; i < 16; i++) all.all[i] = at + size_t(i < some ? i : 0) * layout.bytes;
        if (layout.groups) _mm512_store_ps(rho, unpack_words(words, all, layout));
        product_sixteen(out, out_stride, words, panel, rho, layout.codes, some, d);
        for (int t = 0; t < some && layout.whole; t++) {
            widen_any<V>(wide, all.all[t], size_t(layout.whole), layout.dtype);
            for (int c = 0; c < d; c += LANES)
                product<V>(out + size_t(t) * out_stride + c, out_stride, wide, 0, panel.whole + c,
                           panel.columns, 1, d - c < LANES ? d - c : LANES, layout.whole, true);
        }
    }
}

void unpack_rows_vbmi(float* out, size_t out_stride, const void* rows, const RowLayout& layout,
                      int count) {
    const char* row = static_cast<const char*>(rows);
    for (int s = 0; s < count; s += 2, row += 2 * layout.bytes, out += 2 * out_stride) {
        bool two = s + 1 < count;
        const char* second = row + (two ? layout.bytes : 0);
        if (layout.whole) widen_any<V>(out, row, size_t(layout.whole), layout.dtype);
        if (layout.whole && two)
            widen_any<V>(out + out_stride, second, size_t(layout.whole), layout.dtype);
        if (!layout.groups) continue;
        __m512 rho = _mm512_set1_ps(layout.rho[uint8_t(row[layout.bytes - 1])]);
        __m512 next_rho = _mm512_set1_ps(layout.rho[uint8_t(second[layout.bytes - 1])]);
        for (int b = 0; b < layout.blocks; b++)
            for (int c = 0; c < layout.block[b].pairs; c++) {
                int first = layout.block[b].first + 16 * c, left = layout.codes - first;
                __mmask16 some = left >= 16 ? 0xffff : V::first(left);
                __m512i levels = Pairs{layout.block[b], {}}(row, second, c);
                __m512 step = _mm512_loadu_ps(layout.step + first);
                float* to = out + layout.whole + first;
                store_levels(to, _mm512_and_si512(levels, _mm512_set1_epi32(0xffff)),
                             _mm512_mul_ps(step, rho), some);
                if (two)
                    store_levels(to + out_stride, _mm512_srli_epi32(levels, 16),
                                 _mm512_mul_ps(step, next_rho), some);
            }
    }
}

void coded_scores_vbmi(float* out, size_t out_stride, const float* q, size_t q_stride,
                       const void* rows, const RowLayout& layout, int m, int count) {
    integer_scores<V>(out, out_stride, q, q_stride, rows, layout, m, count);
}

void coded_accumulate_vbmi(float* acc, size_t acc_stride, const float* p, size_t p_stride,
                           const void* rows, const RowLayout& layout, int m, int count) {
    integer_accumulate<V>(acc, acc_stride, p, p_stride, rows, layout, m, count);
}

}  // namespace stief
