// Codes from their bits to 16-bit words in three instructions, whatever their widths, by the tables
// of row_layout.h. For dot_vbmi.cpp, as all of vbmi_*.h.
#pragma once
#include "backend/cpu/integers_impl.h"
#include "backend/cpu/vector_avx512.h"
#include "backend/levels.h"

namespace stief {
namespace {

__m512i four_times(const void* at) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(at)));
}

// 16 rows: row 4 L + j in lane L of the jth register. Either one after another or, of the last
// ones, by their addresses.
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

// Levels of codes with their bases, biased, in words (row_layout.h).
struct BiasedLevels {
    __m512i wide = _mm512_loadu_si512(LEVELS.biased);        // 6 bits
    __m512i narrow = _mm512_loadu_si512(LEVELS.biased + 64);

    __m512i operator()(__m512i code, __m512i mask, __m512i base, __mmask64 lookup) const {
        constexpr int AND_OR = 0xea;                         // (code & mask) | base
        __m512i index = _mm512_ternarylogic_epi64(code, mask, base, AND_OR);
        return _mm512_mask2_permutex2var_epi8(wide, index, lookup, narrow);
    }
};

// The biased levels of 16 coordinates of two rows: the first row's in the lower words.
struct Pairs {
    const RowLayout::Block& block;
    BiasedLevels levels;
    __m512i operator()(const char* first, const char* second, int c) const {
        auto at = [&](const char* row) {
            return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + block.offset));
        };
        __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(at(first)), at(second), 1);
        __m512i bytes = _mm512_permutexvar_epi8(_mm512_load_si512(block.spread[c]), x);
        return levels(_mm512_multishift_epi64_epi8(_mm512_load_si512(block.shift[c]), bytes),
                      _mm512_load_si512(block.mask[c]), _mm512_load_si512(block.base[c]),
                      block.lookup[c]);
    }
};

}  // namespace
}  // namespace stief
