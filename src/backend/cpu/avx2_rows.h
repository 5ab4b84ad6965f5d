// Codes from their bits to 16-bit words with AVX2, by the couples of row_layout.h: four instructions
// for 16 codes of up to 4 bits. For dot_avx2.cpp, as all of avx2_*.h.
#pragma once
#include "backend/cpu/integers_impl.h"
#include "backend/cpu/vector_avx2.h"

namespace stief {
namespace {

constexpr float LARGEST = 32767;

using Couple = RowLayout::Couple;

__m256i all_of(const void* at) {
    return _mm256_load_si256(static_cast<const __m256i*>(at));
}

// How far the levels of a row's couple are above the least.
template <int TABLES>
__m256i above_least(const char* row, const Couple& couple) {
    const void* at = row + couple.offset;
    __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(at)));
    x = _mm256_shuffle_epi8(x, all_of(couple.spread));
    x = _mm256_mulhi_epu16(_mm256_mullo_epi16(x, all_of(couple.up)), all_of(couple.down));
    if constexpr (TABLES == 0) return x;
    __m256i level = _mm256_shuffle_epi8(all_of(couple.level[0]), x);
    unroll<TABLES>([&]<int k>() {            // below 16 k an index is negative: nothing
        if constexpr (k > 0)
            level = _mm256_add_epi8(
                level, _mm256_shuffle_epi8(all_of(couple.level[k]),
                                           _mm256_sub_epi8(x, _mm256_set1_epi8(char(16 * k)))));
    });
    return level;
}

// f<tables>(couple, 16 · its number), from left to right.
template <class Function>
void for_couples(const RowLayout& layout, const Function& f) {
    const Couple *c = layout.couple, *end = c + layout.couples;
    size_t at = 0;
    auto run = [&]<int TABLES>(Indices<TABLES>) {
        for (; c < end && c->tables == TABLES; c++, at += 16) f.template operator()<TABLES>(*c, at);
    };
    run(Indices<0>()), run(Indices<4>()), run(Indices<2>()), run(Indices<1>());
}

int sum_of(__m256i x) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x0e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0x01)));
}

// n (8) ← 8 numbers in their units; returns them as 32-bit integers.
__m256i store_words(int16_t* n, __m256 scaled) {
    __m256i whole = _mm256_cvtps_epi32(scaled);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(n), words);
    return whole;
}

__m256 size_of_each(__m256 x) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}

}  // namespace
}  // namespace stief
