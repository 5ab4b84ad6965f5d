// Keys rebuilt from packed rows. Columns of D become 16-bit integers, each column in its own unit:
// n_ic = round(Δ_i D_ic / u_c), and rows words, their levels; sums are exact. The bound is that of
// vbmi_scores.h with D's column for the query.
#pragma once
#include "backend/cpu/product_impl.h"
#include "backend/cpu/vbmi_rows.h"

namespace stief {
namespace {

// 16 rows become their levels, (16, codes).
template <class Rows>
__m512 unpack_words(int16_t* words, const Rows& rows, const RowLayout& layout) {
    __m512i x[4], bias = _mm512_set1_epi16(Levels::BIAS);
    BiasedLevels levels;
    for (int w = 0; w < layout.windows; w++) {
        const RowLayout::Window& window = layout.window[w];
        unroll<4>([&]<int j>() { x[j] = load_lanes(rows, j, window.offset); });
        for (int g = window.first; g < window.end; g++) {
            const RowLayout::WindowGroup& table = layout.in_window[g];
            __m512i spread = four_times(table.spread), shift = four_times(table.shift);
            __m512i mask = four_times(table.mask), base = four_times(table.base);
            unroll<4>([&]<int j>() {
                __m512i bytes = _mm512_shuffle_epi8(x[j], spread);
                __m512i level = levels(_mm512_multishift_epi64_epi8(shift, bytes), mask, base,
                                       table.lookup);
                level = _mm512_sub_epi16(level, bias);
                unroll<4>([&]<int L>() {
                    _mm_storeu_si128(
                        reinterpret_cast<__m128i*>(words + (4 * L + j) * layout.codes + 8 * g),
                        _mm512_extracti32x4_epi32(level, L));
                });
            });
        }
    }
    return scales_of(x, layout.scale_at, layout.rho);
}

// out (4, n <= 16 C) ← μ + unit ρ Σ_i words_i n_i, of it the first `count` rows.
template <int C>
void product_tile(float* out, size_t out_stride, const int16_t* words, const CodePanel& panel,
                  const float* rho, size_t column, int codes, int count, int n) {
    __m512i sum[4][C];
    unroll<4 * C>([&]<int i>() { sum[i / C][i % C] = _mm512_setzero_si512(); });
    const char* at = panel.n + column * 4;
    for (int i = 0; i < codes; i += 2, at += panel.columns * 4) {
        __m512i D[C];
        unroll<C>([&]<int c>() { D[c] = _mm512_loadu_si512(at + 64 * c); });
        unroll<4>([&]<int t>() {
            int pair;
            __builtin_memcpy(&pair, words + t * codes + i, 4);
            __m512i x = _mm512_set1_epi32(pair);
            unroll<C>([&]<int c>() { sum[t][c] = _mm512_dpwssd_epi32(sum[t][c], D[c], x); });
        });
    }
    unroll<4 * C>([&]<int i>() {
        constexpr int t = i / C, c = i % C;
        if (t >= count) return;
        __m512 unit = _mm512_loadu_ps(panel.unit + column + 16 * c);
        __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t][c]),
                                   _mm512_mul_ps(unit, _mm512_set1_ps(rho[t])),
                                   _mm512_loadu_ps(panel.mean + column + 16 * c));
        int left = n - 16 * c;
        float* to = out + size_t(t) * out_stride + 16 * c;
        if (left >= 16) _mm512_storeu_ps(to, y);
        else _mm512_mask_storeu_ps(to, V::first(left), y);
    });
}

// Of up to 16 rows that were unpacked.
void product_sixteen(float* out, size_t out_stride, const int16_t* words, const CodePanel& panel,
                     const float* rho, int codes, int count, int d) {
    for (int t = 0; t < count; t += 4, out += 4 * out_stride, words += 4 * codes, rho += 4)
        for (int c = 0; c < d; c += 64) {
            int n = d - c < 64 ? d - c : 64;
            auto some = n > 48   ? product_tile<4>
                        : n > 32 ? product_tile<3>
                        : n > 16 ? product_tile<2>
                                 : product_tile<1>;
            some(out + c, out_stride, words, panel, rho, size_t(c), codes, count - t, n);
        }
}

}  // namespace
}  // namespace stief
