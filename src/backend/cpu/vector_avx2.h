// The vector of AVX2 with FMA and F16C: 8 lanes. For the files that are compiled with its flags.
#pragma once
#include <immintrin.h>

#include "backend/cpu/elements_impl.h"

namespace stief {
namespace {

struct V {
    // 6 tokens × 2 vectors: 12 sums, 2 vectors of weights, 1 of x, of 16 registers
    static constexpr int W = 8, COLUMNS = 2, TOKENS = 6, REGISTERS = 16;
    using F = __m256;
    typedef uint64_t Words __attribute__((vector_size(32)));

    static F zero() { return _mm256_setzero_ps(); }
    static F set1(float x) { return _mm256_set1_ps(x); }
    static F broadcast(const char* p) {
        float x;
        __builtin_memcpy(&x, p, 4);
        return _mm256_set1_ps(x);
    }
    static F add(F a, F b) { return _mm256_add_ps(a, b); }
    static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static F div(F a, F b) { return _mm256_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F larger(F a, F b) { return _mm256_max_ps(a, b); }
    static F smaller(F a, F b) { return _mm256_min_ps(a, b); }
    static F where_less(F a, F b, F yes, F no) {
        return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
    }
    static F round(F x) {
        return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    static F floor(F x) {
        return _mm256_round_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    }
    static F lookup(const float* table, F index) {
        return _mm256_i32gather_ps(table, _mm256_cvttps_epi32(index), 4);
    }
    // Two factors: 2^n alone would leave the range before the product does. |n| <= 254.
    static F times_power_of_2(F x, F n) {
        __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
        return mul(mul(x, power_of_2(half)), power_of_2(_mm256_sub_epi32(whole, half)));
    }
    static F power_of_2(__m256i n) {
        return _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
    }
    static float sum(F x) {
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    // out (4) = the sums of four vectors
    static void sums(float* out, F a, F b, F c, F d) {
        F abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        _mm_storeu_ps(out,
                      _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
    }
    static float largest(F x) {
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }

    template <DType E>
    static F from_half(__m128i h) {
        if constexpr (E == DType::F16) return _mm256_cvtph_ps(h);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
    }
    template <DType E>
    static F load(const char* p) {
        if constexpr (E == DType::F32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
        else return from_half<E>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    template <DType E>
    static F load(const char* p, int n) {
        char part[32] = {};
        __builtin_memcpy(part, p, size_t(n) * BYTES<E>);
        return load<E>(part);
    }

    static __m128i to_bf16(F x) {
        __m256i u = _mm256_castps_si256(x);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
        __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
        __m256i packed = _mm256_packus_epi32(high, high);            // within 128 bits
        return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
    }
    template <DType E>
    static void store(char* p, F x) {
        if constexpr (E == DType::F32) {
            _mm256_storeu_ps(reinterpret_cast<float*>(p), x);
        } else {
            __m128i h =
                E == DType::F16 ? _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT) : to_bf16(x);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(p), h);
        }
    }
    template <DType E>
    static void store(char* p, F x, int n) {
        char part[32];
        store<E>(part, x);
        __builtin_memcpy(p, part, size_t(n) * BYTES<E>);
    }

    // out (8) ← step level[code] of one group (coded_impl.h)
    template <class Table>
    static void levels(float* out, const char* from, const Table& table, const float* level,
                       float step) {
        __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        auto vector = [](const void* at) {
            return _mm256_load_si256(static_cast<const __m256i*>(at));
        };
        __m256i words = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes),
                                            vector(table.spread));
        words = _mm256_and_si256(_mm256_srlv_epi32(words, vector(table.shift)),
                                 _mm256_set1_epi32(table.mask));
        F found;
        if (table.bits <= 3) {
            found = _mm256_permutevar8x32_ps(_mm256_loadu_ps(level), words);
        } else if (table.bits == 4) {
            F low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(level), words);
            F high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(level + 8), words);
            __m256i upper = _mm256_slli_epi32(words, 28);            // bit 3 on top
            found = _mm256_blendv_ps(low, high, _mm256_castsi256_ps(upper));
        } else if (table.bits <= 6) {
            found = _mm256_i32gather_ps(level, words, 4);
        } else {
            words = _mm256_sub_epi32(words, _mm256_set1_epi32(128));
            found = _mm256_cvtepi32_ps(words);
        }
        _mm256_storeu_ps(out, _mm256_mul_ps(found, _mm256_set1_ps(step)));
    }

    static void transpose(F (&a)[8]) {
        F b[8];
        for (int i = 0; i < 8; i += 2) {                             // pairs within 64 bits
            b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
        }
        for (int i = 0; i < 8; i += 4)                               // 4×4 blocks within 128 bits
            for (int j = 0; j < 2; j++) {
                __m256d lo = _mm256_castps_pd(b[i + j]), hi = _mm256_castps_pd(b[i + j + 2]);
                a[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(lo, hi));
                a[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(lo, hi));
            }
        for (int j = 0; j < 4; j++) {
            F top = a[j], bottom = a[j + 4];
            a[j] = _mm256_permute2f128_ps(top, bottom, 0x20);
            a[j + 4] = _mm256_permute2f128_ps(top, bottom, 0x31);
        }
    }
};

}  // namespace
}  // namespace stief
