// AMX with bf16: AVX-512's table with the product of pairs on tile registers (amx_tiles.h). The
// instructions are written out because the compilers' own names take the register's number only as
// a literal in a macro.
#include <immintrin.h>

#include "backend/cpu/amx_tiles.h"

namespace stief {
namespace {

struct Tiles {
    static void configure(const TileConfig& config) {
        asm volatile("ldtilecfg %0" ::"m"(config));
    }
    static void release() { asm volatile("tilerelease"); }
    template <int C>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" ::"i"(C));
    }
    template <int C>
    static void load(const void* from, size_t row_bytes) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(C)
                     : "memory");
    }
    template <int C>
    static void store(void* to, size_t row_bytes) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(C) : "memory");
    }
    template <int C, int A, int B>
    static void multiply() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
    }
};

// c₁ is c cut off after bf16's 8 significant bits. f16 has 11: what is left has at most 3.
template <bool HALF>
void split(void* out, size_t out_stride, const void* rows, int count, int r) {
    uint16_t* to = static_cast<uint16_t*>(out);
    const uint16_t* from = static_cast<const uint16_t*>(rows);
    auto upper = [](__m512i x) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)); };
    for (int s = 0; s < count; s++, to += out_stride, from += r)
        for (int i = 0; i < r; i += 16) {
            auto some = __mmask16(r - i >= 16 ? 0xffff : (1 << (r - i)) - 1);
            __m256i c = _mm256_maskz_loadu_epi16(some, from + i), first = c;
            __m256i rest = _mm256_setzero_si256();
            if (HALF) {
                __m512 x = _mm512_cvtph_ps(c);
                __m512i cut = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(~0xffff));
                first = upper(cut);
                rest = upper(_mm512_castps_si512(_mm512_sub_ps(x, _mm512_castsi512_ps(cut))));
            }
            _mm256_mask_storeu_epi16(to + i, some, first);
            _mm256_mask_storeu_epi16(to + r + i, some, rest);
            _mm256_mask_storeu_epi16(to + 2 * r + i, some, first);
        }
}

}  // namespace

void split_f16_amx(void* out, size_t out_stride, const void* rows, int count, int r) {
    split<true>(out, out_stride, rows, count, r);
}

void split_bf16_amx(void* out, size_t out_stride, const void* rows, int count, int r) {
    split<false>(out, out_stride, rows, count, r);
}

void product_pairs_amx(float* out, size_t out_stride, const void* x, size_t x_stride,
                       const void* panels, int T, int n, int k, bool add) {
    AmxProduct<Tiles>::run(out, out_stride, static_cast<const char*>(x), x_stride * 2,
                           static_cast<const char*>(panels), T, n, k, add);
}

}  // namespace stief
