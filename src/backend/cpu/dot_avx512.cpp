// AVX-512 with bf16: 16 lanes. Compiled with its own flags; chosen by isa.cpp.
#include "backend/cpu/kernels_impl.h"
#include "backend/cpu/vector_avx512.h"

namespace stief {
namespace {

// One step multiplies a pair of bf16 coordinates: sum + x0 w0 + x1 w1 in f32.
struct Pairs {
    using Vector = __m512i;
    static Vector load(const char* at) { return _mm512_loadu_si512(at); }
    static Vector broadcast(const char* at) {
        int pair;
        __builtin_memcpy(&pair, at, 4);
        return _mm512_set1_epi32(pair);
    }
    static __m512 multiply_add(Vector x, Vector w, __m512 sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
    }
};

void product_pairs(float* out, size_t out_stride, const void* x, size_t x_stride,
                   const void* panels, int T, int n, int k, bool add) {
    constexpr int LANES = V::W * V::COLUMNS;
    const char* panel = static_cast<const char*>(panels);
    for (int j = 0; j < n; j += LANES, panel += size_t(k) * LANES * 2) {
        auto some = n - j > V::W ? tiles<V, Pairs, V::COLUMNS> : tiles<V, Pairs, 1>;
        some(out + j, out_stride, static_cast<const char*>(x), x_stride * 2, panel, LANES * 4, T,
             n - j < LANES ? n - j : LANES, k / 2, add);
    }
}

// panel (k/2, lanes, 2) ← two and two rows interleaved; k is filled with zeros to PAIRS_K.
void pair_rows(void* panel, const void* rows, size_t row_stride, int n, int k) {
    const char* from = static_cast<const char*>(rows);
    char* to = static_cast<char*>(panel);
    int padded = (k + PAIRS_K - 1) / PAIRS_K * PAIRS_K;
    for (int i = 0; i < padded; i += 2, from += 4 * row_stride)
        for (int j = 0; j < V::W * V::COLUMNS; j += V::W, to += 4 * V::W) {
            __mmask16 left = n - j >= V::W ? 0xffff : n > j ? V::first(n - j) : 0;
            const char* at = from + 2 * j;
            auto half = [&](int row) {
                __mmask16 some = i + row < k ? left : 0;
                return _mm512_cvtepu16_epi32(
                    _mm256_maskz_loadu_epi16(some, at + size_t(row) * 2 * row_stride));
            };
            _mm512_storeu_si512(to, _mm512_or_si512(half(0), _mm512_slli_epi32(half(1), 16)));
        }
}

constexpr Kernels make() {
    Kernels table = make_table<V>("avx512");
    table.pair_rows = pair_rows;
    table.product_pairs = product_pairs;
    return table;
}

}  // namespace

const Kernels kernels_avx512 = make();

}  // namespace stief
