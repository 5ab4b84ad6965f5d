// Scores. As in vbmi_scores.h, with its bound: q_i Δ_i becomes an integer, n_i = round(q_i Δ_i / u),
// and Σ_i n_i L_i = Σ_i n_i (L_i − least_i) + Σ_i n_i least_i is exact, each of them modulo 2³².
#pragma once
#include "backend/cpu/avx2_rows.h"

namespace stief {
namespace {

// Coordinates of a row as couples have them, of a couple of one group the last 8 nothing.
constexpr int MOST_SLOTS = 2 * RowLayout::MOST;

// One head's query as integers.
struct Query {
    int16_t* n;                              // (couples, 16)
    float unit;
    int constant;                            // Σ n_i least_i modulo 2³²
};

Query fix_query(int16_t* n, const float* q, const RowLayout& layout) {
    alignas(32) float scaled[MOST_SLOTS];
    __m256 largest = _mm256_setzero_ps(), sum = largest;
    float* to = scaled;
    for (const Couple* c = layout.couple; c < layout.couple + layout.couples; c++)
        for (int half = 0; half < 16; half += 8, to += 8) {
            __m256 x = _mm256_setzero_ps();
            if (half < c->codes)
                x = _mm256_mul_ps(_mm256_loadu_ps(q + c->first + half),
                                  _mm256_loadu_ps(layout.step + c->first + half));
            _mm256_store_ps(to, x);
            largest = _mm256_max_ps(size_of_each(x), largest);
            sum = _mm256_add_ps(sum, size_of_each(x));
        }
    Fixed<V> fixed(largest, sum, LARGEST, MOST_IN_SUM);
    __m256i all = _mm256_setzero_si256();
    for (int c = 0; c < layout.couples; c++) {
        int16_t* words = n + 16 * c;
        store_words(words, fixed.scaled(_mm256_load_ps(scaled + 16 * c)));
        store_words(words + 8, fixed.scaled(_mm256_load_ps(scaled + 16 * c + 8)));
        all = _mm256_add_epi32(all, _mm256_madd_epi16(all_of(words), all_of(layout.couple[c].least)));
    }
    return {n, fixed.unit, sum_of(all)};
}

// sum_h,r and sum_h,r+1 (8 lanes) ← n_h · (levels of two rows above the least).
template <int M>
void score_two(__m256i (&sum)[M][4], int r, const Query* q, const char* const* row,
               const RowLayout& layout) {
    __m256i part[M][2];
    unroll<2 * M>([&]<int i>() { part[i / 2][i % 2] = _mm256_setzero_si256(); });
    for_couples(layout, [&]<int TABLES>(const Couple& couple, size_t at) {
        __m256i a = above_least<TABLES>(row[r], couple), b = above_least<TABLES>(row[r + 1], couple);
        unroll<M>([&]<int h>() {
            __m256i n = all_of(q[h].n + at);
            part[h][0] = _mm256_add_epi32(part[h][0], _mm256_madd_epi16(a, n));
            part[h][1] = _mm256_add_epi32(part[h][1], _mm256_madd_epi16(b, n));
        });
    });
    unroll<M>([&]<int h>() { sum[h][r] = part[h][0], sum[h][r + 1] = part[h][1]; });
}

// out_h (4) ← q_h · c for the first `count` of four rows, or += where there are whole elements.
template <int M>
void score_four(float* out, size_t out_stride, const Query* q, const char* const* row,
                const RowLayout& layout, int count) {
    __m256i sum[M][4];
    score_two<M>(sum, 0, q, row, layout);
    score_two<M>(sum, 2, q, row, layout);
    size_t last = layout.bytes - 1;
    auto rho = [&](int r) { return layout.rho[uint8_t(row[r][last])]; };
    __m128 scale = _mm_setr_ps(rho(0), rho(1), rho(2), rho(3));
    unroll<M>([&]<int h>() {
        __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(sum[h][0], sum[h][1]),
                                        _mm256_hadd_epi32(sum[h][2], sum[h][3]));
        __m128i whole = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
        whole = _mm_add_epi32(whole, _mm_set1_epi32(q[h].constant));
        __m128 y = _mm_mul_ps(_mm_mul_ps(_mm_cvtepi32_ps(whole), _mm_set1_ps(q[h].unit)), scale);
        float* to = out + size_t(h) * out_stride;
        if (count == 4) {
            _mm_storeu_ps(to, layout.whole ? _mm_add_ps(y, _mm_loadu_ps(to)) : y);
        } else {
            float one[4];
            _mm_storeu_ps(one, y);
            for (int r = 0; r < count; r++) to[r] = layout.whole ? to[r] + one[r] : one[r];
        }
    });
}

template <int M>
void score_codes(float* out, size_t out_stride, const float* q, size_t q_stride, const char* rows,
                 const RowLayout& layout, int count) {
    alignas(32) int16_t n[M][MOST_SLOTS];
    Query query[M];
    unroll<M>([&]<int h>() {
        query[h] = fix_query(n[h], q + size_t(h) * q_stride + layout.whole, layout);
    });
    for (int s = 0; s < count; s += 4) {
        int some = count - s < 4 ? count - s : 4;
        const char *at = rows + size_t(s) * layout.bytes, *row[4];
        for (int i = 0; i < 4; i++) row[i] = at + size_t(i < some ? i : 0) * layout.bytes;
        for (size_t i = 0; i < 4 * layout.bytes; i += 64) _mm_prefetch(at + AHEAD + i, _MM_HINT_T0);
        score_four<M>(out + s, out_stride, query, row, layout, some);
    }
}

}  // namespace
}  // namespace stief
