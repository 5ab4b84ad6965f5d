// Codes from their bits to bytes in four instructions, 64 of them at once, whatever their widths, by the
// tables of row_layout.h; and 16-bit integers as two bytes each, since the instruction that multiplies
// bytes takes twice as many. For dot_vbmi.cpp, as all of vbmi_*.h.
#pragma once
#include "backend/cpu/integers_impl.h"
#include "backend/cpu/vector_avx512.h"
#include "backend/levels.h"

namespace stief {
namespace {

constexpr float LARGEST_PAIR = 32639;        // 127 · 256 + 127

// Sums of products: of the type that the instruction has, for then g++ copies no register.
typedef int Sums __attribute__((vector_size(64)));

Sums add_products(Sums sum, __m512i unsigned_bytes, __m512i bytes) {
    return Sums(_mm512_dpbusd_epi32(__m512i(sum), unsigned_bytes, bytes));
}

__m512i four_times(const void* at) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(at)));
}

// A piece of four rows, two in a register (row_layout.h).
template <bool CLOSE>
struct FourRows {
    __m512i first, second;

    // at: in the first of them. Where there are fewer, another row stands for the others, or (CLOSE)
    // what lies behind the last: levels and scales that nobody uses or that have no weight.
    FourRows(const char* at, size_t bytes, int rows)
        : first(two(at, bytes, rows > 1)), second(two(rows > 2 ? at + 2 * bytes : at, bytes, rows > 3)) {}

    __m512i operator[](__m512i index) const {
        return _mm512_permutex2var_epi8(first, index, second);
    }

  private:
    static __m512i two(const char* at, size_t bytes, bool both) {
        if (CLOSE) return _mm512_loadu_si512(at);
        auto one = [](const char* p) {
            return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        };
        return _mm512_inserti64x4(_mm512_castsi256_si512(one(at)), one(both ? at + bytes : at), 1);
    }
};

// Levels of codes with their bases, biased (row_layout.h).
struct BiasedLevels {
    __m512i wide = _mm512_loadu_si512(LEVELS.biased);        // 6 bits
    __m512i narrow = _mm512_loadu_si512(LEVELS.biased + 64);

    __m512i operator()(__m512i code, __m512i mask, __m512i base, __mmask64 lookup) const {
        constexpr int AND_OR = 0xea;                         // (code & mask) | base
        __m512i index = _mm512_ternarylogic_epi64(code, mask, base, AND_OR);
        return _mm512_mask2_permutex2var_epi8(wide, index, lookup, narrow);
    }
};

// Of 16 codes of four rows, a row a lane.
struct ByRow {
    __m512i spread, shift, mask, base;
    __mmask64 lookup;

    ByRow(const RowLayout& layout, int n) {
        const RowLayout::Sixteen& table = layout.sixteen[n];
        spread = _mm512_add_epi8(four_times(table.spread), _mm512_load_si512(layout.lanes));
        shift = four_times(table.shift), mask = four_times(table.mask), base = four_times(table.base);
        lookup = table.lookup;
    }
    template <class Rows>
    __m512i operator()(const Rows& rows, const BiasedLevels& levels) const {
        return levels(_mm512_multishift_epi64_epi8(shift, rows[spread]), mask, base, lookup);
    }
};

// The same, the four rows of a code side by side.
struct ByCode {
    const RowLayout::Block& block;
    template <class Rows>
    __m512i operator()(const Rows& rows, const BiasedLevels& levels, int c) const {
        __m512i bytes = rows[_mm512_load_si512(block.spread[c])];
        return levels(_mm512_multishift_epi64_epi8(_mm512_load_si512(block.shift[c]), bytes),
                      _mm512_load_si512(block.mask[c]), _mm512_load_si512(block.base[c]),
                      block.lookup[c]);
    }
};

// The scales of four rows as 32-bit integers, in their places among 16; from the last window.
template <bool CLOSE>
__m512i scale_bytes(const FourRows<CLOSE>& rows, const RowLayout& layout, int quad) {
    // byte 0 of dword t is row t % 4's
    __m512i lanes = _mm512_load_si512(layout.lanes), four = _mm512_setr_epi32(
        0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    __m512i at = _mm512_add_epi8(_mm512_permutexvar_epi32(four, lanes),
                                 _mm512_set1_epi8(char(layout.scale_at)));
    return _mm512_maskz_permutex2var_epi8(__mmask64(0x1111) << (16 * quad), rows.first, at, rows.second);
}

// ρ(s) = 2^(s / 16 · 2) ρ(s % 16)
__m512 scales_of(__m512i byte, const float* rho) {
    __m512i power = _mm512_slli_epi32(_mm512_srli_epi32(byte, 4), 24);
    __m512 fraction = _mm512_permutexvar_ps(byte, _mm512_loadu_ps(rho));
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(fraction), power));
}

// 16 integers of at most LARGEST_PAIR as 256 high + low.
void store_bytes(int8_t* high, int8_t* low, __m512i n) {
    __m512i above = _mm512_srai_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(above));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(n));
}

__m512i from_bytes(Sums high, Sums low) {
    return _mm512_add_epi32(_mm512_slli_epi32(__m512i(high), 8), __m512i(low));
}

}  // namespace
}  // namespace stief
