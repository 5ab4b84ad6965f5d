// The vector of AVX-512: 16 lanes. For the files that are compiled with its flags.
#pragma once
#include <immintrin.h>

#include "backend/cpu/elements_impl.h"

namespace stief {
namespace {

struct V {
    // 12 tokens × 2 vectors: 24 sums, 2 vectors of weights, and x broadcast from memory, of 32
    // registers
    static constexpr int W = 16, COLUMNS = 2, TOKENS = 12, REGISTERS = 32;
    using F = __m512;
    typedef uint64_t Words __attribute__((vector_size(64)));

    static F zero() { return _mm512_setzero_ps(); }
    static F set1(float x) { return _mm512_set1_ps(x); }
    static F broadcast(const char* p) {
        float x;
        __builtin_memcpy(&x, p, 4);
        return _mm512_set1_ps(x);
    }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F larger(F a, F b) { return _mm512_max_ps(a, b); }
    static F smaller(F a, F b) { return _mm512_min_ps(a, b); }
    static F where_less(F a, F b, F yes, F no) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
    }
    static F round(F x) { return _mm512_roundscale_ps(x, 0x08); }    // to nearest, quietly
    static F floor(F x) { return _mm512_roundscale_ps(x, 0x09); }    // down, quietly
    static F lookup(const float* table, F index) {
        return _mm512_i32gather_ps(_mm512_cvttps_epi32(index), table, 4);
    }
    static F times_power_of_2(F x, F n) { return _mm512_scalef_ps(x, n); }
    static float sum(F x) { return _mm512_reduce_add_ps(x); }
    // out (4) = the sums of four vectors
    static void sums(float* out, F a, F b, F c, F d) {
        F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        F abcd = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
        _mm_storeu_ps(out,
                      _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
    }
    static float largest(F x) { return _mm512_reduce_max_ps(x); }

    static __mmask16 first(int n) { return __mmask16((1u << n) - 1); }
    static F from_bf16(__m256i h) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
    }

    template <DType E>
    static F load(const char* p) {
        if constexpr (E == DType::F32) return _mm512_loadu_ps(p);
        __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return E == DType::F16 ? _mm512_cvtph_ps(h) : from_bf16(h);
    }
    template <DType E>
    static F load(const char* p, int n) {
        if constexpr (E == DType::F32) return _mm512_maskz_loadu_ps(first(n), p);
        __m256i h = _mm256_maskz_loadu_epi16(first(n), p);
        return E == DType::F16 ? _mm512_cvtph_ps(h) : from_bf16(h);
    }

    // The integer way and not vcvtneps2bf16, which takes subnormals for zero.
    static __m256i to_bf16(F x) {
        __m512i u = _mm512_castps_si512(x);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
        __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
        return _mm512_cvtepi32_epi16(
            _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
    }
    template <DType E>
    static __m256i half(F x) {
        if constexpr (E == DType::F16) return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
        return to_bf16(x);
    }
    template <DType E>
    static void store(char* p, F x) {
        if constexpr (E == DType::F32) _mm512_storeu_ps(p, x);
        else _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half<E>(x));
    }
    template <DType E>
    static void store(char* p, F x, int n) {
        if constexpr (E == DType::F32) _mm512_mask_storeu_ps(p, first(n), x);
        else _mm256_mask_storeu_epi16(p, first(n), half<E>(x));
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
        __m256 found;
        if (table.bits <= 4)
            found = _mm256_permutex2var_ps(_mm256_loadu_ps(level), words,
                                           _mm256_loadu_ps(level + 8));
        else if (table.bits == 5)
            found = _mm512_castps512_ps256(_mm512_permutex2var_ps(
                _mm512_loadu_ps(level), _mm512_castsi256_si512(words),
                _mm512_loadu_ps(level + 16)));
        else if (table.bits == 6)
            found = _mm256_i32gather_ps(level, words, 4);
        else
            found = _mm256_cvtepi32_ps(_mm256_sub_epi32(words, _mm256_set1_epi32(128)));
        _mm256_storeu_ps(out, _mm256_mul_ps(found, _mm256_set1_ps(step)));
    }

    static void transpose(F (&a)[16]) {
        F b[16];
        for (int i = 0; i < 16; i += 2) {                            // pairs within 64 bits
            b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
        }
        for (int i = 0; i < 16; i += 4)                              // 4×4 blocks within 128 bits
            for (int j = 0; j < 2; j++) {
                __m512d lo = _mm512_castps_pd(b[i + j]), hi = _mm512_castps_pd(b[i + j + 2]);
                a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
                a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
            }
        for (int i = 0; i < 16; i += 8)                              // the 4×4 blocks of 8 rows
            for (int j = 0; j < 4; j++) {
                b[i + j] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0x88);
                b[i + j + 4] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0xdd);
            }
        for (int j = 0; j < 4; j++) {                                // of all 16
            a[j] = _mm512_shuffle_f32x4(b[j], b[j + 8], 0x88);
            a[j + 8] = _mm512_shuffle_f32x4(b[j], b[j + 8], 0xdd);
            a[j + 4] = _mm512_shuffle_f32x4(b[j + 4], b[j + 12], 0x88);
            a[j + 12] = _mm512_shuffle_f32x4(b[j + 4], b[j + 12], 0xdd);
        }
    }
};

}  // namespace
}  // namespace stief
