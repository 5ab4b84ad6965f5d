// Keys rebuilt from packed rows, as in vbmi_product.h, but with 16 bits for every coordinate: D's
// columns become integers, each in its own unit, rows their levels, and sums are exact: two instructions
// for 16 products, as many as for f32's, but a sum of integers needs no multiplier.
#pragma once
#include "backend/cpu/avx2_rows.h"
#include "backend/cpu/product_impl.h"

namespace stief {
namespace {

// Each column of Δ D in the unit that its largest element asks for, or the largest sum:
// (codes / 2, columns, 2) 16-bit integers.
void code_panel_avx2(void* memory, const float* D, const float* mean, const RowLayout& layout, int d) {
    CodePanel panel(memory, layout, d);
    for (int c = 0; c < int(panel.columns); c += 8) {
        int left = d - c < 0 ? 0 : d - c < 8 ? d - c : 8;
        auto load_row = [&](const float* row) { return load<V, DType::F32>(row, size_t(c), left); };
        auto row = [&](int i) { return load_row(D + size_t(i) * size_t(d)); };
        auto scaled = [&](int i) {
            return _mm256_mul_ps(row(layout.whole + i), _mm256_set1_ps(layout.step[i]));
        };
        for (int i = 0; i < layout.whole; i++)
            _mm256_storeu_ps(panel.whole + size_t(i) * panel.columns + c, row(i));
        __m256 most = _mm256_setzero_ps(), sum = most;
        for (int i = 0; i < layout.codes; i++) {
            __m256 size = size_of_each(scaled(i));
            most = _mm256_max_ps(size, most), sum = _mm256_add_ps(sum, size);
        }
        __m256 unit = _mm256_max_ps(_mm256_mul_ps(most, _mm256_set1_ps(1 / LARGEST)),
                                    _mm256_mul_ps(sum, _mm256_set1_ps(1 / MOST_IN_SUM)));
        __m256 used = _mm256_cmp_ps(unit, _mm256_set1_ps(0x1p-120f), _CMP_GE_OQ);
        __m256 inverse = _mm256_and_ps(used, _mm256_div_ps(_mm256_set1_ps(1), unit));
        __m256 bad = _mm256_cmp_ps(sum, _mm256_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
        __m256 nan = _mm256_set1_ps(__builtin_nanf(""));
        _mm256_storeu_ps(panel.unit + c, _mm256_blendv_ps(_mm256_and_ps(used, unit), nan, bad));
        _mm256_storeu_ps(panel.mean + c, mean ? load_row(mean) : _mm256_setzero_ps());
        char* to = panel.n + size_t(c) * 4;
        for (int i = 0; i < layout.codes; i += 2, to += panel.columns * 4) {
            __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(scaled(i), inverse));
            __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(scaled(i + 1), inverse));
            __m256i pair = _mm256_blend_epi16(first, _mm256_slli_epi32(second, 16), 0xaa);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), pair);
        }
    }
}

// words (codes) ← a row's levels
void unpack_words(int16_t* words, const char* row, const RowLayout& layout) {
    auto put = [&](const Couple& couple, __m256i above) {
        __m256i level = _mm256_add_epi16(above, all_of(couple.least));
        __m128i* to = reinterpret_cast<__m128i*>(words + couple.first);
        _mm_storeu_si128(to, _mm256_castsi256_si128(level));
        if (couple.codes > 8) _mm_storeu_si128(to + 1, _mm256_extracti128_si256(level, 1));
    };
    for_couples(layout, [&]<int TABLES>(const Couple& couple, size_t) {
        put(couple, above_least<TABLES>(row, couple));
    });
}

// out (ROWS, n <= 8 C) ← μ + unit ρ Σ_i words_i n_i, of it the first `count` rows.
constexpr int ROWS = 4;
template <int C>
void product_tile(float* out, size_t out_stride, const int16_t* words, const CodePanel& panel,
                  const float* rho, size_t column, int codes, int count, int n) {
    __m256i sum[ROWS][C];
    unroll<ROWS * C>([&]<int i>() { sum[i / C][i % C] = _mm256_setzero_si256(); });
    const char* at = panel.n + column * 4;
    for (int i = 0; i < codes; i += 2, at += panel.columns * 4) {
        __m256i D[C];
        unroll<C>([&]<int c>() {
            D[c] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32 * c));
        });
        unroll<ROWS>([&]<int t>() {
            int pair;
            __builtin_memcpy(&pair, words + t * codes + i, 4);
            __m256i x = _mm256_set1_epi32(pair);
            unroll<C>([&]<int c>() {
                sum[t][c] = _mm256_add_epi32(sum[t][c], _mm256_madd_epi16(D[c], x));
            });
        });
    }
    unroll<ROWS * C>([&]<int i>() {
        constexpr int t = i / C, c = i % C;
        if (t >= count || n <= 8 * c) return;
        __m256 unit = _mm256_loadu_ps(panel.unit + column + 8 * c);
        __m256 y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t][c]),
                                   _mm256_mul_ps(unit, _mm256_set1_ps(rho[t])),
                                   _mm256_loadu_ps(panel.mean + column + 8 * c));
        int left = n - 8 * c;
        store<V, DType::F32>(out + size_t(t) * out_stride + 8 * c, 0, left < 8 ? left : 8, y);
    });
}

void coded_product_avx2(float* out, size_t out_stride, const void* rows, const void* memory,
                        const RowLayout& layout, int count, int d) {
    constexpr int LANES = V::W * V::COLUMNS;
    alignas(32) int16_t words[ROWS * RowLayout::MOST];
    alignas(32) float wide[RowLayout::MOST];
    float rho[ROWS] = {};
    const char* at = static_cast<const char*>(rows);
    CodePanel panel(memory, layout, d);
    for (int s = 0; s < count; s += ROWS, out += ROWS * out_stride) {
        int some = count - s < ROWS ? count - s : ROWS;
        for (int t = 0; t < ROWS && layout.groups; t++) {
            const char* row = at + size_t(t < some ? t : 0) * layout.bytes;
            unpack_words(words + t * layout.codes, row, layout);
            rho[t] = layout.rho[uint8_t(row[layout.bytes - 1])];
        }
        for (int c = 0; c < d; c += 16)
            product_tile<2>(out + c, out_stride, words, panel, rho, size_t(c), layout.codes, some,
                            d - c < 16 ? d - c : 16);
        for (int t = 0; t < some && layout.whole; t++) {
            widen_any<V>(wide, at + size_t(t) * layout.bytes, size_t(layout.whole), layout.dtype);
            for (int c = 0; c < d; c += LANES)
                product<V>(out + size_t(t) * out_stride + c, out_stride, wide, 0, panel.whole + c,
                           panel.columns, 1, d - c < LANES ? d - c : LANES, layout.whole, true);
        }
        at += ROWS * layout.bytes;
    }
}

}  // namespace
}  // namespace stief
