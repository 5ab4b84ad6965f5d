// Scores. q_i Δ_i becomes an integer, n_i = round(q_i Δ_i / u), which codes' levels L_i multiply. u
// is so large that no |n_i| exceeds 32767 and no sum 31 bits; sums are exact, and
//     |error| <= ½ u ρ Σ_i |L_i|,   |L_i| <= 128
// With u = max_i |q_i Δ_i| / 32767, as it is for up to 512 coordinates: 2⁻¹⁶ of the sum that would
// be if every coordinate had the largest q_i Δ_i.
#pragma once
#include "backend/cpu/vbmi_rows.h"

namespace stief {
namespace {

// One head's query as integers.
struct Query {
    int16_t* n;                              // (codes, filled)
    float unit;
    int constant;                            // 128 Σ n_i modulo 2³²: what the levels' bias adds
};

Query fix_query(int16_t* n, const float* q, const RowLayout& layout) {
    alignas(64) float scaled[RowLayout::MOST];
    __m512 largest = _mm512_setzero_ps(), sum = largest;
    for (int i = 0; i < layout.codes; i += 16) {
        int left = layout.codes - i;
        __m512 x = left >= 16 ? V::load<DType::F32>(reinterpret_cast<const char*>(q + i))
                              : V::load<DType::F32>(reinterpret_cast<const char*>(q + i), left);
        x = _mm512_mul_ps(x, _mm512_loadu_ps(layout.step + i));
        _mm512_store_ps(scaled + i, x);
        largest = _mm512_max_ps(_mm512_abs_ps(x), largest);
        sum = _mm512_add_ps(sum, _mm512_abs_ps(x));
    }
    Fixed<V> fixed(largest, sum, MOST_IN_SUM);
    __m512i all = _mm512_setzero_si512();
    for (int i = 0; i < layout.codes; i += 16) {
        __m512i whole = _mm512_cvtps_epi32(fixed.scaled(_mm512_load_ps(scaled + i)));
        all = _mm512_add_epi32(all, whole);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(n + i), _mm512_cvtepi32_epi16(whole));
    }
    return {n, fixed.unit, _mm512_reduce_add_epi32(_mm512_slli_epi32(all, 7))};
}

// The sums of 4 × 16 groups of 4 lanes, in the order of the rows.
__m512i row_sums(const __m512i (&sum)[4]) {
    auto pair = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    };
    __m512i a = pair(sum[0], sum[1]), b = pair(sum[2], sum[3]);
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

// out_h (16) ← q_h · c, or += where there are whole elements; what is not of the mask stays.
template <int M, class Rows>
void score_sixteen(float* out, size_t out_stride, const Query* q, const Rows& rows,
                   const RowLayout& layout, __mmask16 some) {
    __m512i sum[M][4], x[4];
    BiasedLevels levels;
    unroll<4 * M>([&]<int i>() { sum[i / 4][i % 4] = _mm512_setzero_si512(); });
    for (int w = 0; w < layout.windows; w++) {
        const RowLayout::Window& window = layout.window[w];
        unroll<4>([&]<int j>() { x[j] = load_lanes(rows, j, window.offset); });
        for (int g = window.first; g < window.end; g++) {
            const RowLayout::WindowGroup& table = layout.in_window[g];
            __m512i spread = four_times(table.spread), shift = four_times(table.shift);
            __m512i mask = four_times(table.mask), base = four_times(table.base), level[4];
            unroll<4>([&]<int j>() {
                __m512i bytes = _mm512_shuffle_epi8(x[j], spread);
                level[j] = levels(_mm512_multishift_epi64_epi8(shift, bytes), mask, base,
                                  table.lookup);
            });
            unroll<M>([&]<int h>() {
                __m512i n = four_times(q[h].n + 8 * g);
                unroll<4>([&]<int j>() {
                    sum[h][j] = _mm512_dpwssd_epi32(sum[h][j], level[j], n);
                });
            });
        }
    }
    __m512 rho = scales_of(x, layout.scale_at, layout.rho);
    unroll<M>([&]<int h>() {
        __m512i whole = _mm512_sub_epi32(row_sums(sum[h]), _mm512_set1_epi32(q[h].constant));
        __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(q[h].unit));
        y = _mm512_mul_ps(y, rho);
        float* to = out + size_t(h) * out_stride;
        if (layout.whole) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(some, to));
        _mm512_mask_storeu_ps(to, some, y);
    });
}

template <int M>
void score_codes(float* out, size_t out_stride, const float* q, size_t q_stride, const char* rows,
                 const RowLayout& layout, int count) {
    alignas(64) int16_t n[M][RowLayout::MOST];
    Query query[M];
    unroll<M>([&]<int h>() {
        query[h] = fix_query(n[h], q + size_t(h) * q_stride + layout.whole, layout);
    });
    size_t row = layout.bytes;
    int s = 0;
    for (; s + 16 <= count; s += 16, rows += 16 * row) {
        for (size_t i = 0; i < 16 * row; i += 64) _mm_prefetch(rows + AHEAD + i, _MM_HINT_T0);
        Sixteen some = {{rows, rows + 4 * row, rows + 8 * row, rows + 12 * row}, row};
        score_sixteen<M>(out + s, out_stride, query, some, layout, 0xffff);
    }
    if (s == count) return;
    Last last;
    for (int i = 0; i < 16; i++) last.all[i] = rows + size_t(i < count - s ? i : 0) * row;
    score_sixteen<M>(out + s, out_stride, query, last, layout, V::first(count - s));
}

}  // namespace
}  // namespace stief
