// Keys rebuilt from packed rows. Columns of D become integers, each column in its own unit: n_ic =
// round(Δ_i D_ic / u_c) = 256 high + low, which rows' levels multiply; sums are exact. The bound is that
// of vbmi_scores.h with D's column for the query, but for the last coordinates, which have fewest bits:
// there n is a multiple of 256, and low is not multiplied. Their number is so chosen that what this
// rounds is at most PRODUCT_LOSS of what the codes themselves have lost: of coordinates of unit spread,
// where E[L_i²] = 1 / Δ_i² and D_b is lost,
//     Σ_c (256 u_c)² / 12 Σ_{i >= fine} 1 / Δ_i²  <=  PRODUCT_LOSS Σ_c Σ_i D_ic² D_b(i)
#pragma once
#include "backend/cpu/product_impl.h"
#include "backend/cpu/vbmi_rows.h"

namespace stief {
namespace {

// As MOST_IN_SUM, where each of up to 2048 may be rounded by 128.
constexpr float MOST_ROUNDED = 1.651e7f;

// 16 columns of D, from the cth on.
struct Columns {
    const float* D;
    const RowLayout& layout;
    int c, d;

    __m512 row(const float* from) const {
        return _mm512_maskz_loadu_ps(d - c >= 16 ? 0xffff : V::first(d - c), from + c);
    }
    __m512 coded(int i) const { return row(D + size_t(layout.whole + i) * size_t(d)); }
    __m512 scaled(int i) const {                 // Δ_i D_i
        return _mm512_mul_ps(coded(i), _mm512_set1_ps(layout.step[i]));
    }
};

// panel.unit ← that of each column; returns how many coordinates want two bytes of n.
int fix_units(const CodePanel& panel, const float* D, const RowLayout& layout, int d) {
    __m512 lost = _mm512_setzero_ps(), squares = lost;
    for (int c = 0; c < d; c += 16) {
        Columns columns{D, layout, c, d};
        __m512 most = _mm512_setzero_ps(), sum = most;
        for (int i = 0; i < layout.codes; i++) {
            __m512 size = _mm512_abs_ps(columns.scaled(i)), x = columns.coded(i);
            most = _mm512_max_ps(size, most), sum = _mm512_add_ps(sum, size);
            lost = _mm512_fmadd_ps(_mm512_mul_ps(x, x),
                                   _mm512_set1_ps(layout.group[i / 8].distortion), lost);
        }
        __m512 unit = _mm512_max_ps(_mm512_mul_ps(most, _mm512_set1_ps(1 / LARGEST_PAIR)),
                                    _mm512_mul_ps(sum, _mm512_set1_ps(1 / MOST_ROUNDED)));
        __mmask16 used = _mm512_cmp_ps_mask(unit, _mm512_set1_ps(0x1p-120f), _CMP_GE_OQ);
        __mmask16 bad = _mm512_cmp_ps_mask(sum, _mm512_set1_ps(__builtin_inff()), _CMP_NLT_UQ);
        unit = _mm512_mask_mov_ps(_mm512_maskz_mov_ps(used, unit), bad,
                                  _mm512_set1_ps(__builtin_nanf("")));
        squares = _mm512_fmadd_ps(unit, unit, squares);
        _mm512_storeu_ps(panel.unit + c, unit);
    }
    float left = PRODUCT_LOSS * V::sum(lost), each = V::sum(squares) * (256 * 256 / 12.0f);
    int fine = layout.codes;
    for (; fine > 0; fine -= ROW_GROUP) {
        float step = layout.step[fine - 1];
        left -= ROW_GROUP * each / (step * step);
        if (!(left >= 0)) break;
    }
    return fine;
}

// n's bytes from `shift` on, of four rows of D; 16 columns.
__m512i byte_of_four(const __m512i (&n)[4], int shift) {
    __m512i bytes = _mm512_setzero_si512();
    unroll<4>([&]<int k>() {
        __m512i one = _mm512_srai_epi32(n[k], unsigned(shift));
        one = _mm512_and_si512(one, _mm512_set1_epi32(0xff));
        bytes = _mm512_or_si512(bytes, _mm512_slli_epi32(one, 8 * k));
    });
    return bytes;
}

// 16 rows become their levels, biased, (16, stride).
template <bool CLOSE>
__m512 unpack_bytes(uint8_t* to, size_t stride, const char* at, const RowLayout& layout, int rows) {
    __m512i scale = _mm512_setzero_si512();
    BiasedLevels levels;
    for (int j = 0; 4 * j < rows; j++, at += 4 * layout.bytes)
        for (int w = 0; w < layout.windows; w++) {
            const RowLayout::Window& window = layout.window[w];
            FourRows<CLOSE> x(at + window.offset, layout.bytes, rows - 4 * j);
            for (int c = window.first; c < window.end; c++) {
                __m512i level = ByRow(layout, c)(x, levels);
                unroll<4>([&]<int L>() {
                    _mm_storeu_si128(
                        reinterpret_cast<__m128i*>(to + size_t(4 * j + L) * stride + 16 * size_t(c)),
                        _mm512_extracti32x4_epi32(level, L));
                });
            }
            if (w + 1 == layout.windows) scale = _mm512_or_si512(scale, scale_bytes(x, layout, j));
        }
    return scales_of(scale, layout.rho);
}

// out (4, n <= 16 C) ← μ + unit ρ Σ_i level_i n_i, of it the first `count` rows.
template <int C>
void product_tile(float* out, size_t out_stride, const uint8_t* levels, size_t stride,
                  const CodePanel& panel, const float* rho, size_t column, int codes, int count, int n) {
    constexpr int R = 4;
    Sums sum[R][C] = {};
    auto multiply = [&](const char* at, int end) {
        for (int i = 0; i < end; i += 4, at += panel.columns * 4) {
            __m512i D[C];
            unroll<C>([&]<int c>() { D[c] = _mm512_loadu_si512(at + 64 * c); });
            unroll<R>([&]<int t>() {
                int four;
                __builtin_memcpy(&four, levels + size_t(t) * stride + i, 4);
                __m512i x = _mm512_set1_epi32(four);
                unroll<C>([&]<int c>() { sum[t][c] = add_products(sum[t][c], x, D[c]); });
            });
        }
    };
    const char* high = panel.n + column * 4;
    multiply(high, codes);
    unroll<R * C>([&]<int i>() { sum[i / C][i % C] <<= 8; });
    multiply(high + size_t(codes) * panel.columns, panel.fine());
    unroll<R * C>([&]<int i>() {
        constexpr int t = i / C, c = i % C;
        if (t >= count) return;
        __m512i bias = _mm512_loadu_si512(panel.constant + column + 16 * c);
        __m512i whole = _mm512_sub_epi32(__m512i(sum[t][c]), bias);
        __m512 unit = _mm512_loadu_ps(panel.unit + column + 16 * c);
        __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole),
                                   _mm512_mul_ps(unit, _mm512_set1_ps(rho[t])),
                                   _mm512_loadu_ps(panel.mean + column + 16 * c));
        int left = n - 16 * c;
        float* to = out + size_t(t) * out_stride + 16 * c;
        if (left >= 16) _mm512_storeu_ps(to, y);
        else _mm512_mask_storeu_ps(to, V::first(left), y);
    });
}

// Of up to 16 rows that were unpacked.
void product_sixteen(float* out, size_t out_stride, const uint8_t* levels, size_t stride,
                     const CodePanel& panel, const float* rho, int codes, int count, int d) {
    for (int t = 0; t < count; t += 4, out += 4 * out_stride, levels += 4 * stride, rho += 4)
        for (int c = 0; c < d; c += 64) {
            int n = d - c < 64 ? d - c : 64;
            auto some = n > 48   ? product_tile<4>
                        : n > 32 ? product_tile<3>
                        : n > 16 ? product_tile<2>
                                 : product_tile<1>;
            some(out + c, out_stride, levels, stride, panel, rho, size_t(c), codes, count - t, n);
        }
}

}  // namespace

void code_panel_vbmi(void* memory, const float* D, const float* mean, const RowLayout& layout, int d) {
    CodePanel panel(memory, layout, d);
    panel.fine() = fix_units(panel, D, layout, d);
    size_t plane = size_t(layout.codes) * panel.columns;
    const __m512i HALF = _mm512_set1_epi32(128), HIGH = _mm512_set1_epi32(~255);
    for (int c = 0; c < d; c += 16) {
        Columns columns{D, layout, c, d};
        for (int i = 0; i < layout.whole; i++)
            _mm512_storeu_ps(panel.whole + size_t(i) * panel.columns + c,
                             columns.row(D + size_t(i) * size_t(d)));
        __m512 unit = _mm512_loadu_ps(panel.unit + c);
        __mmask16 used = _mm512_cmp_ps_mask(unit, _mm512_setzero_ps(), _CMP_GT_OQ);
        __m512 inverse = _mm512_maskz_div_ps(used, _mm512_set1_ps(1), unit);
        _mm512_storeu_ps(panel.mean + c, mean ? columns.row(mean) : _mm512_setzero_ps());
        char* to = panel.n + size_t(c) * 4;
        __m512i all = _mm512_setzero_si512();
        for (int i = 0; i < layout.codes; i += 4, to += panel.columns * 4) {
            __m512i n[4], above[4];
            unroll<4>([&]<int k>() {
                n[k] = _mm512_cvtps_epi32(_mm512_mul_ps(columns.scaled(i + k), inverse));
                above[k] = _mm512_add_epi32(n[k], HALF);
                all = _mm512_add_epi32(all, i < panel.fine() ? n[k] : _mm512_and_si512(above[k], HIGH));
            });
            _mm512_storeu_si512(to, byte_of_four(above, 8));
            _mm512_storeu_si512(to + plane, byte_of_four(n, 0));
        }
        _mm512_storeu_si512(panel.constant + c, _mm512_slli_epi32(all, 7));
    }
}

void coded_product_vbmi(float* out, size_t out_stride, const void* rows, const void* memory,
                        const RowLayout& layout, int count, int d) {
    constexpr int LANES = V::W * V::COLUMNS;
    alignas(64) uint8_t levels[16 * RowLayout::MOST];
    alignas(64) float rho[16] = {}, wide[RowLayout::MOST];
    size_t stride = (size_t(layout.codes) + 15) / 16 * 16;
    const char* at = static_cast<const char*>(rows);
    CodePanel panel(memory, layout, d);
    auto unpack = layout.close ? unpack_bytes<true> : unpack_bytes<false>;
    for (int s = 0; s < count; s += 16, out += 16 * out_stride, at += 16 * layout.bytes) {
        int some = count - s < 16 ? count - s : 16;
        if (layout.groups) _mm512_store_ps(rho, unpack(levels, stride, at, layout, some));
        product_sixteen(out, out_stride, levels, stride, panel, rho, layout.codes, some, d);
        for (int t = 0; t < some && layout.whole; t++) {
            widen_any<V>(wide, at + size_t(t) * layout.bytes, size_t(layout.whole), layout.dtype);
            for (int c = 0; c < d; c += LANES)
                product<V>(out + size_t(t) * out_stride + c, out_stride, wide, 0, panel.whole + c,
                           panel.columns, 1, d - c < LANES ? d - c : LANES, layout.whole, true);
        }
    }
}

}  // namespace stief
