// Rows of mixed widths with VBMI and VNNI: codes go from their bits to 16-bit words in three
// instructions, whatever their widths, and are multiplied as integers. Compiled with its own flags;
// joins AVX-512's table in isa.cpp.
//
// Scores. q_i Δ_i becomes an integer, n_i = round(q_i Δ'_i / u), Δ' the step of a code at the top of
// its byte. u is so large that no |n_i| exceeds 32767 and no sum 31 bits; sums are exact, and
//     |error| <= ½ u ρ Σ_i |level'_i|,   level' = (c / ρ) / Δ', at most 127½
// With u = max_i |q_i Δ'_i| / 32767, as it is for up to 512 coordinates: 2⁻¹⁶ of the sum that would
// be if every coordinate had the largest q_i Δ'_i.
//
// Weighted sums. In tiles of 256 rows p_s ρ_s becomes n_s = round(p_s ρ_s / u), u = max_s |p_s ρ_s|
// / 32767. The error of a coordinate is at most ½ u Σ_s |level_s| Δ: 2⁻¹⁶ of what it would be had
// every row of the tile the largest weight.
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wunknown-warning-option"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "backend/cpu/coded_impl.h"
#include "backend/cpu/product_impl.h"
#include "backend/cpu/vector_avx512.h"

namespace stief {
namespace {

constexpr int HEADS = 4;                     // at once
constexpr int TILE = 256;                    // rows: 256 · 255 · 32767 < 2³¹
constexpr float LARGEST = 32767;
constexpr size_t AHEAD = 1536;               // bytes: the prefetcher stops at a page's end

__m512i four_times(const void* at) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(at)));
}

// The unit of some numbers, so large that none exceeds 16 bits in it nor their sum `limit`; NaN
// where one of them is not finite.
struct Fixed {
    float unit, inverse;

    Fixed(__m512 largest, __m512 sum, float limit) {
        float most = _mm512_reduce_max_ps(largest), all = _mm512_reduce_add_ps(sum);
        unit = most / LARGEST > all / limit ? most / LARGEST : all / limit;
        // smaller ones would have no inverse
        if (unit < 0x1p-120f) unit = 0;
        inverse = unit > 0 ? 1 / unit : 0;
        if (!(all < __builtin_inff())) unit = __builtin_nanf(""), inverse = 0;
    }
    __m512i round(__m512 x) const {
        return _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
    }
};

// One head's query as integers.
struct Query {
    int16_t* n;                              // (codes, filled)
    float unit, odd;                         // odd: ½ where the constant is no whole number
    int constant;                            // Σ n_i middle'_i, rounded down, modulo 2³²
};

Query fix_query(int16_t* n, const float* q, const RowLayout& layout) {
    constexpr float LIMIT = 1.68e7f;         // · 127½ < 2³¹, with ½ for the rounding of 2048
    alignas(64) float scaled[RowLayout::MOST];
    __m512 largest = _mm512_setzero_ps(), sum = largest;
    for (int i = 0; i < layout.codes; i += 16) {
        int left = layout.codes - i;
        __m512 x = left >= 16 ? V::load<DType::F32>(reinterpret_cast<const char*>(q + i))
                              : V::load<DType::F32>(reinterpret_cast<const char*>(q + i), left);
        // Δ' = Δ 2^(b − 8) = Δ half / 128
        __m512 step = _mm512_mul_ps(_mm512_loadu_ps(layout.step + i),
                                    _mm512_loadu_ps(layout.half + i));
        x = _mm512_mul_ps(x, _mm512_mul_ps(step, _mm512_set1_ps(1.0f / 128)));
        _mm512_store_ps(scaled + i, x);
        largest = _mm512_max_ps(_mm512_abs_ps(x), largest);
        sum = _mm512_add_ps(sum, _mm512_abs_ps(x));
    }
    Fixed fixed(largest, sum, LIMIT);
    // 2 middle' = 255 − (2^(8 − b) − 1) = 256 − 128 / half
    __m512i middles = _mm512_setzero_si512(), halves = middles;
    for (int i = 0; i < layout.codes; i += 16) {
        __m512i whole = fixed.round(_mm512_load_ps(scaled + i));
        __m512i unused = _mm512_cvtps_epi32(
            _mm512_div_ps(_mm512_set1_ps(128), _mm512_loadu_ps(layout.half + i)));
        __m512i twice = _mm512_sub_epi32(_mm512_set1_epi32(256), unused);
        middles = _mm512_add_epi32(middles,
                                   _mm512_mullo_epi32(whole, _mm512_srli_epi32(twice, 1)));
        // of 8 bits the middle is 127½: those halves are counted apart
        __m512i odd = _mm512_and_si512(twice, _mm512_set1_epi32(1));
        halves = _mm512_add_epi32(halves, _mm512_mullo_epi32(whole, odd));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(n + i), _mm512_cvtepi32_epi16(whole));
    }
    int extra = _mm512_reduce_add_epi32(halves);
    return {n, fixed.unit, extra & 1 ? 0.5f : 0,
            int(unsigned(_mm512_reduce_add_epi32(middles)) + unsigned(extra >> 1))};
}

// 16 rows: row 4 L + j in lane L of the jth register. Either one after another or, of the last ones,
// by their addresses.
struct Sixteen {
    const char* lane[4];
    size_t bytes;
    const char* row(int L, int j) const { return lane[L] + size_t(j) * bytes; }
};
struct Last {
    const char* all[16];
    const char* row(int L, int j) const { return all[4 * L + j]; }
};

template <class Rows>
__m512i load_lanes(const Rows& rows, int j, size_t offset) {
    auto at = [&](int L) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.row(L, j) + offset));
    };
    __m512i x = _mm512_inserti32x4(_mm512_castsi128_si512(at(0)), at(1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(x, at(2), 2), at(3), 3);
}

// ρ of 16 rows from the byte `at` of each lane.
__m512 scales_of(const __m512i (&x)[4], int at, const float* rho) {
    __m512i byte = _mm512_setzero_si512();
    unroll<4>([&]<int j>() {
        __m512i spread = _mm512_or_si512(four_times(RowLayout::SCALE_SPREAD[j]),
                                         _mm512_set1_epi8(char(at)));
        byte = _mm512_or_si512(byte, _mm512_shuffle_epi8(x[j], spread));
    });
    // ρ(s) = 2^(s / 16 · 2) ρ(s % 16)
    __m512i power = _mm512_slli_epi32(_mm512_srli_epi32(byte, 4), 24);
    __m512 fraction = _mm512_permutexvar_ps(byte, _mm512_loadu_ps(rho));
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(fraction), power));
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
    unroll<4 * M>([&]<int i>() { sum[i / 4][i % 4] = _mm512_setzero_si512(); });
    for (int w = 0; w < layout.windows; w++) {
        const RowLayout::Window& window = layout.window[w];
        unroll<4>([&]<int j>() { x[j] = load_lanes(rows, j, window.offset); });
        for (int g = window.first; g < window.end; g++) {
            const RowLayout::WindowGroup& table = layout.in_window[g];
            __m512i spread = four_times(table.spread), shift = four_times(table.shift);
            __m512i mask = four_times(table.mask), code[4];
            unroll<4>([&]<int j>() {
                __m512i bytes = _mm512_shuffle_epi8(x[j], spread);
                code[j] = _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, bytes), mask);
            });
            unroll<M>([&]<int h>() {
                __m512i n = four_times(q[h].n + 8 * g);
                unroll<4>([&]<int j>() {
                    sum[h][j] = _mm512_dpwssd_epi32(sum[h][j], code[j], n);
                });
            });
        }
    }
    __m512 rho = scales_of(x, layout.scale_at, layout.rho);
    unroll<M>([&]<int h>() {
        __m512i whole = _mm512_sub_epi32(row_sums(sum[h]), _mm512_set1_epi32(q[h].constant));
        __m512 y = _mm512_sub_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(q[h].odd));
        y = _mm512_mul_ps(_mm512_mul_ps(y, _mm512_set1_ps(q[h].unit)), rho);
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

// One tile's weights as integers, of rows in pairs; beyond the last row zero.
struct Weights {
    alignas(64) int16_t n[HEADS][TILE];
    float unit[HEADS];
    int sum[HEADS];                          // Σ n
};

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
    Fixed fixed(largest, sum, TILE * LARGEST);
    __m512i all = _mm512_setzero_si512();
    for (int s = 0; s < filled; s += 16) {
        __m512i n = fixed.round(_mm512_load_ps(scaled + s));
        all = _mm512_add_epi32(all, n);
        _mm256_store_si256(reinterpret_cast<__m256i*>(weights.n[h] + s), _mm512_cvtepi32_epi16(n));
    }
    weights.unit[h] = fixed.unit;
    weights.sum[h] = _mm512_reduce_add_epi32(all);
}

// The codes of 16 coordinates of two rows: the first row's in the lower words.
struct Pairs {
    const RowLayout::Block& block;
    __m512i operator()(const char* first, const char* second, int c) const {
        auto at = [&](const char* row) {
            return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + block.offset));
        };
        __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(at(first)), at(second), 1);
        __m512i bytes = _mm512_permutexvar_epi8(_mm512_load_si512(block.spread[c]), x);
        return _mm512_and_si512(
            _mm512_multishift_epi64_epi8(_mm512_load_si512(block.shift[c]), bytes),
            _mm512_load_si512(block.mask[c]));
    }
};

// acc_h += unit Δ (Σ_s n_s code_s − middle Σ_s n_s) for one block of one tile.
template <int M, int C>
void weigh_block(float* acc, size_t acc_stride, const Weights& weights, const char* rows,
                 const RowLayout& layout, const RowLayout::Block& block, int count) {
    __m512i sum[M][C];
    unroll<M * C>([&]<int i>() { sum[i / C][i % C] = _mm512_setzero_si512(); });
    Pairs codes{block};
    for (int s = 0; s < count; s += 2, rows += 2 * layout.bytes) {
        const char* second = rows + (s + 1 < count ? layout.bytes : 0);
        __m512i code[C];
        unroll<C>([&]<int c>() { code[c] = codes(rows, second, c); });
        unroll<M>([&]<int h>() {
            int pair;
            __builtin_memcpy(&pair, weights.n[h] + s, 4);
            __m512i n = _mm512_set1_epi32(pair);
            unroll<C>([&]<int c>() {
                sum[h][c] = _mm512_dpwssd_epi32(sum[h][c], code[c], n);
            });
        });
    }
    unroll<C>([&]<int c>() {
        int first = block.first + 16 * c, left = layout.codes - first;
        __mmask16 some = left >= 16 ? 0xffff : V::first(left);
        __m512 step = _mm512_loadu_ps(layout.step + first);
        __m512i half = _mm512_cvtps_epi32(_mm512_loadu_ps(layout.half + first));
        unroll<M>([&]<int h>() {
            // (2 half − 1) Σ n: twice what the middles add up to
            __m512i all = _mm512_set1_epi32(weights.sum[h]);
            __m512i twice = _mm512_sub_epi32(_mm512_mullo_epi32(_mm512_slli_epi32(half, 1), all), all);
            __m512i whole = _mm512_sub_epi32(sum[h][c], _mm512_srai_epi32(twice, 1));
            __m512i odd = _mm512_and_si512(twice, _mm512_set1_epi32(1));
            __m512 y = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(odd), _mm512_set1_ps(0.5f),
                                        _mm512_cvtepi32_ps(whole));
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

template <class Function>
void by_heads(int m, const Function& f) {
    for (int h = 0; h < m; h += HEADS) {
        int M = m - h < HEADS ? m - h : HEADS;
        if (M == 4) f.template operator()<4>(size_t(h));
        if (M == 3) f.template operator()<3>(size_t(h));
        if (M == 2) f.template operator()<2>(size_t(h));
        if (M == 1) f.template operator()<1>(size_t(h));
    }
}

// 16 coordinates of one row of a pair as f32: step (code − middle).
void store_levels(float* to, __m512i code, __m512 middle, __m512 step, __mmask16 some) {
    __m512 level = _mm512_sub_ps(_mm512_cvtepi32_ps(code), middle);
    _mm512_mask_storeu_ps(to, some, _mm512_mul_ps(step, level));
}

// Keys rebuilt: 16 rows become words 2 level' (at most 255), (16, codes).
template <class Rows>
__m512 unpack_words(int16_t* words, const Rows& rows, const RowLayout& layout) {
    __m512i x[4];
    for (int w = 0; w < layout.windows; w++) {
        const RowLayout::Window& window = layout.window[w];
        unroll<4>([&]<int j>() { x[j] = load_lanes(rows, j, window.offset); });
        for (int g = window.first; g < window.end; g++) {
            const RowLayout::WindowGroup& table = layout.in_window[g];
            __m512i spread = four_times(table.spread), shift = four_times(table.shift);
            __m512i mask = four_times(table.mask);
            __m512i middle = _mm512_set1_epi16(int16_t(256 - (256 >> layout.group[g].bits)));
            unroll<4>([&]<int j>() {
                __m512i bytes = _mm512_shuffle_epi8(x[j], spread);
                __m512i code = _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, bytes), mask);
                code = _mm512_sub_epi16(_mm512_slli_epi16(code, 1), middle);
                unroll<4>([&]<int L>() {
                    _mm_storeu_si128(
                        reinterpret_cast<__m128i*>(words + (4 * L + j) * layout.codes + 8 * g),
                        _mm512_extracti32x4_epi32(code, L));
                });
            });
        }
    }
    return scales_of(x, layout.scale_at, layout.rho);
}

// Where a panel's parts are.
struct CodePanel {
    size_t columns;
    float* unit;                             // (columns)
    char* n;                                 // (codes / 2, columns, 2) 16-bit integers
    float* whole;                            // (whole, columns)

    CodePanel(const void* panel, const RowLayout& layout, int d)
        : columns((size_t(d) + 15) / 16 * 16),
          unit(static_cast<float*>(const_cast<void*>(panel))),
          n(reinterpret_cast<char*>(unit + columns)),
          whole(reinterpret_cast<float*>(n + size_t(layout.codes) * columns * 2)) {}
};

// out (4, n <= 16 C) ← unit ρ Σ_i words_i n_i, of it the first `count` rows.
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
        __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[t][c]),
                                 _mm512_mul_ps(unit, _mm512_set1_ps(rho[t])));
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

// Each column of Δ' D / 2 in the unit that its largest element asks for, or the largest sum.
void code_panel_vbmi(void* memory, const float* D, const RowLayout& layout, int d) {
    constexpr float LIMIT = 8.4e6f;          // · 255 < 2³¹, with ½ for the rounding of 2048
    CodePanel panel(memory, layout, d);
    for (int c = 0; c < d; c += 16) {
        __mmask16 some = d - c >= 16 ? 0xffff : V::first(d - c);
        auto row = [&](int i) { return _mm512_maskz_loadu_ps(some, D + size_t(i) * size_t(d) + c); };
        auto scaled = [&](int i) {
            float step = layout.step[i] * layout.half[i] / 256;
            return _mm512_mul_ps(row(layout.whole + i), _mm512_set1_ps(step));
        };
        for (int i = 0; i < layout.whole; i++)
            _mm512_storeu_ps(panel.whole + size_t(i) * panel.columns + c, row(i));
        __m512 most = _mm512_setzero_ps(), sum = most;
        for (int i = 0; i < layout.codes; i++) {
            __m512 size = _mm512_abs_ps(scaled(i));
            most = _mm512_max_ps(size, most), sum = _mm512_add_ps(sum, size);
        }
        __m512 unit = _mm512_max_ps(_mm512_mul_ps(most, _mm512_set1_ps(1 / LARGEST)),
                                    _mm512_mul_ps(sum, _mm512_set1_ps(1 / LIMIT)));
        __mmask16 used = _mm512_cmp_ps_mask(unit, _mm512_set1_ps(0x1p-120f), _CMP_GE_OQ);
        __m512 inverse = _mm512_maskz_div_ps(used, _mm512_set1_ps(1), unit);
        __mmask16 bad = _mm512_cmp_ps_mask(sum, _mm512_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
        unit = _mm512_mask_mov_ps(_mm512_maskz_mov_ps(used, unit), bad,
                                  _mm512_set1_ps(__builtin_nanf("")));
        _mm512_storeu_ps(panel.unit + c, unit);
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
                __m512i codes = Pairs{layout.block[b]}(row, second, c);
                __m512 step = _mm512_loadu_ps(layout.step + first);
                __m512 middle = _mm512_sub_ps(_mm512_loadu_ps(layout.half + first),
                                              _mm512_set1_ps(0.5f));
                float* to = out + layout.whole + first;
                store_levels(to, _mm512_and_si512(codes, _mm512_set1_epi32(0xffff)), middle,
                             _mm512_mul_ps(step, rho), some);
                if (two)
                    store_levels(to + out_stride, _mm512_srli_epi32(codes, 16), middle,
                                 _mm512_mul_ps(step, next_rho), some);
            }
    }
}

void coded_scores_vbmi(float* out, size_t out_stride, const float* q, size_t q_stride,
                       const void* rows, const RowLayout& layout, int m, int count) {
    if (layout.whole || !layout.groups)
        whole_scores<V>(out, out_stride, q, q_stride, rows, layout, m, count);
    if (!layout.groups) return;
    by_heads(m, [&]<int M>(size_t h) {
        score_codes<M>(out + h * out_stride, out_stride, q + h * q_stride, q_stride,
                       static_cast<const char*>(rows), layout, count);
    });
}

void coded_accumulate_vbmi(float* acc, size_t acc_stride, const float* p, size_t p_stride,
                           const void* rows, const RowLayout& layout, int m, int count) {
    if (layout.whole)
        whole_accumulate<V>(acc, acc_stride, p, p_stride, rows, layout, m, count);
    if (!layout.groups) return;
    by_heads(m, [&]<int M>(size_t h) {
        weigh_codes<M>(acc + h * acc_stride + layout.whole, acc_stride, p + h * p_stride, p_stride,
                       static_cast<const char*>(rows), layout, count);
    });
}

}  // namespace stief
