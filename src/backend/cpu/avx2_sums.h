// Weighted sums. As in vbmi_sums.h, with its bound: in tiles of 256 rows p_s ρ_s becomes n_s =
// round(p_s ρ_s / u), and Σ_s n_s L_s = Σ_s n_s (L_s − least) + least Σ_s n_s is exact modulo 2³².
#pragma once
#include "backend/cpu/avx2_rows.h"

namespace stief {
namespace {

// One tile's weights as integers, of rows in pairs; beyond the last row zero.
struct Weights {
    alignas(32) int16_t n[HEADS][TILE];
    float unit[HEADS];
    int sum[HEADS];                          // Σ n
};

void fix_weights(Weights& weights, int h, const float* p, const float* rho, int count) {
    alignas(32) float scaled[TILE];
    __m256 largest = _mm256_setzero_ps(), sum = largest;
    for (int s = 0; s < count; s += 8) {
        __m256 x = load<V, DType::F32>(p, size_t(s), count - s < 8 ? count - s : 8);
        x = _mm256_mul_ps(x, _mm256_load_ps(rho + s));
        _mm256_store_ps(scaled + s, x);
        largest = _mm256_max_ps(size_of_each(x), largest);
        sum = _mm256_add_ps(sum, size_of_each(x));
    }
    Fixed<V> fixed(largest, sum, LARGEST, TILE * LARGEST);
    __m256i all = _mm256_setzero_si256();
    for (int s = 0; s < count; s += 8) {
        __m256 x = fixed.scaled(_mm256_load_ps(scaled + s));
        all = _mm256_add_epi32(all, store_words(weights.n[h] + s, x));
    }
    weights.unit[h] = fixed.unit;
    weights.sum[h] = sum_of(all);
}

// acc_h += unit Δ Σ_s n_s L_s for one couple of one tile.
template <int M, int TABLES>
void weigh_couple(float* acc, size_t acc_stride, const Weights& weights, const char* rows,
                  const RowLayout& layout, const Couple& couple, int count) {
    __m256i sum[M][2];                       // codes 0–3 and 8–11; 4–7 and 12–15
    unroll<2 * M>([&]<int i>() { sum[i / 2][i % 2] = _mm256_setzero_si256(); });
    for (int s = 0; s < count; s += 2, rows += 2 * layout.bytes) {
        __m256i a = above_least<TABLES>(rows, couple);
        __m256i b = above_least<TABLES>(rows + (s + 1 < count ? layout.bytes : 0), couple);
        __m256i lower = _mm256_unpacklo_epi16(a, b), upper = _mm256_unpackhi_epi16(a, b);
        unroll<M>([&]<int h>() {
            int pair;
            __builtin_memcpy(&pair, weights.n[h] + s, 4);
            __m256i n = _mm256_set1_epi32(pair);
            sum[h][0] = _mm256_add_epi32(sum[h][0], _mm256_madd_epi16(lower, n));
            sum[h][1] = _mm256_add_epi32(sum[h][1], _mm256_madd_epi16(upper, n));
        });
    }
    unroll<M>([&]<int h>() {
        __m256 unit = _mm256_set1_ps(weights.unit[h]);
        for (int half = 0; half < couple.codes; half += 8) {
            int least = int(uint32_t(weights.sum[h]) * uint32_t(int(couple.least[half])));
            __m256i all = half ? _mm256_permute2x128_si256(sum[h][0], sum[h][1], 0x31)
                               : _mm256_permute2x128_si256(sum[h][0], sum[h][1], 0x20);
            __m256 y = _mm256_cvtepi32_ps(_mm256_add_epi32(all, _mm256_set1_epi32(least)));
            int first = couple.first + half;
            float* to = acc + size_t(h) * acc_stride + first;
            y = _mm256_mul_ps(y, _mm256_mul_ps(_mm256_loadu_ps(layout.step + first), unit));
            _mm256_storeu_ps(to, _mm256_add_ps(y, _mm256_loadu_ps(to)));
        }
    });
}

template <int M>
void weigh_codes(float* acc, size_t acc_stride, const float* p, size_t p_stride, const char* rows,
                 const RowLayout& layout, int count) {
    Weights weights;
    alignas(32) float rho[TILE];
    for (int s = 0; s < count; s += TILE, p += TILE, rows += TILE * layout.bytes) {
        int some = count - s < TILE ? count - s : TILE;
        const char* scale = rows + layout.bytes - 1;
        for (int i = 0; i < some; i++, scale += layout.bytes) rho[i] = layout.rho[uint8_t(*scale)];
        for (int i = some; i % 8; i++) rho[i] = 0;
        for (int h = 0; h < M; h++) fix_weights(weights, h, p + size_t(h) * p_stride, rho, some);
        for (const Couple* c = layout.couple; c < layout.couple + layout.couples; c++) {
            auto weigh = c->tables == 4   ? weigh_couple<M, 4>
                         : c->tables == 2 ? weigh_couple<M, 2>
                         : c->tables == 1 ? weigh_couple<M, 1>
                                          : weigh_couple<M, 0>;
            weigh(acc, acc_stride, weights, rows, layout, *c, some);
        }
    }
}

}  // namespace
}  // namespace stief
