// Scores. q_i Δ_i becomes an integer, n_i = round(q_i Δ_i / u), which codes' levels L_i multiply. u
// is so large that no |n_i| exceeds 32639 and no sum 31 bits; sums are exact, and
//     |error| <= ½ u ρ Σ_i |L_i|,   |L_i| <= 128
// With u = max_i |q_i Δ_i| / 32639, as it is for up to 512 coordinates: 2⁻¹⁶ of the sum that would
// be if every coordinate had the largest q_i Δ_i.
#pragma once
#include "backend/cpu/vbmi_rows.h"

namespace stief {
namespace {

// One head's query as integers.
struct Query {
    const int8_t *high, *low;                // (codes, filled): n = 256 high + low
    float unit;
    int constant;                            // 128 Σ n_i modulo 2³²: what the levels' bias adds
};

Query fix_query(int8_t* high, int8_t* low, const float* q, const RowLayout& layout) {
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
    Fixed<V> fixed(largest, sum, LARGEST_PAIR, MOST_IN_SUM);
    __m512i all = _mm512_setzero_si512();
    for (int i = 0; i < layout.codes; i += 16) {
        __m512i n = _mm512_cvtps_epi32(fixed.scaled(_mm512_load_ps(scaled + i)));
        all = _mm512_add_epi32(all, n);
        store_bytes(high + i, low + i, n);
    }
    return {high, low, fixed.unit, _mm512_reduce_add_epi32(_mm512_slli_epi32(all, 7))};
}

// The sums of 4 × 4 lanes of 128 bits: of lane L of the jth in place 4 j + L.
__m512i lane_sums(const __m512i (&sum)[4]) {
    auto pair = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    };
    __m512i a = pair(sum[0], sum[1]), b = pair(sum[2], sum[3]);
    __m512i by_lane = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), by_lane);
}

// out_h (16) ← q_h · c, or += where there are whole elements, of as many rows as there are.
template <int M, bool CLOSE>
void score_sixteen(float* out, size_t out_stride, const Query* q, const char* at,
                   const RowLayout& layout, int rows) {
    constexpr int J = 2;                     // of four rows at once
    __m512i sum[M][4], scale = _mm512_setzero_si512();
    BiasedLevels levels;
    unroll<4 / J>([&]<int part>() {
        auto four = [&](int j, size_t offset) {
            int before = 4 * (J * part + j), left = rows - before;
            const char* from = at + (left > 0 ? size_t(before) * layout.bytes : 0) + offset;
            return FourRows<CLOSE>(from, layout.bytes, left);
        };
        Sums high[M][J] = {}, low[M][J] = {};
        for (int w = 0; w < layout.windows; w++) {
            const RowLayout::Window& window = layout.window[w];
            FourRows<CLOSE> x[J] = {four(0, window.offset), four(1, window.offset)};
            for (int c = window.first; c < window.end; c++) {
                ByRow code(layout, c);
                __m512i level[J];
                unroll<J>([&]<int j>() { level[j] = code(x[j], levels); });
                unroll<M>([&]<int h>() {
                    __m512i above = four_times(q[h].high + 16 * c), n = four_times(q[h].low + 16 * c);
                    unroll<J>([&]<int j>() {
                        high[h][j] = add_products(high[h][j], level[j], above);
                        low[h][j] = add_products(low[h][j], level[j], n);
                    });
                });
            }
            if (w + 1 == layout.windows)
                unroll<J>([&]<int j>() {
                    scale = _mm512_or_si512(scale, scale_bytes(x[j], layout, J * part + j));
                });
        }
        unroll<J * M>([&]<int i>() {
            sum[i / J][J * part + i % J] = from_bytes(high[i / J][i % J], low[i / J][i % J]);
        });
    });
    __m512 rho = scales_of(scale, layout.rho);
    __mmask16 some = rows >= 16 ? 0xffff : V::first(rows);
    unroll<M>([&]<int h>() {
        __m512i whole = _mm512_sub_epi32(lane_sums(sum[h]), _mm512_set1_epi32(q[h].constant));
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
    alignas(64) int8_t high[M][RowLayout::MOST], low[M][RowLayout::MOST];
    Query query[M];
    unroll<M>([&]<int h>() {
        query[h] = fix_query(high[h], low[h], q + size_t(h) * q_stride + layout.whole, layout);
    });
    auto some = layout.close ? score_sixteen<M, true> : score_sixteen<M, false>;
    size_t sixteen = 16 * layout.bytes;
    for (int s = 0; s < count; s += 16, rows += sixteen) {
        for (size_t i = 0; i < sixteen; i += 64) _mm_prefetch(rows + AHEAD + i, _MM_HINT_T0);
        some(out + s, out_stride, query, rows, layout, count - s);
    }
}

}  // namespace
}  // namespace stief
