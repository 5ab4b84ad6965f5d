// Rows of mixed widths with VBMI and VNNI: codes go from their bits to bytes in four instructions,
// whatever their widths, and are multiplied as integers. Compiled with its own flags;
// joins AVX-512's table in isa.cpp.
#include "backend/cpu/vbmi_pack.h"
#include "backend/cpu/vbmi_product.h"
#include "backend/cpu/vbmi_scores.h"
#include "backend/cpu/vbmi_sums.h"

namespace stief {
namespace {

// A block's 16 codes of one of four rows as f32: step level.
void store_levels(float* to, __m512i biased, int row, __m512 step, __mmask16 some) {
    __m512i level = _mm512_srli_epi32(biased, unsigned(8 * row));
    level = _mm512_sub_epi32(_mm512_and_si512(level, _mm512_set1_epi32(0xff)),
                             _mm512_set1_epi32(Levels::BIAS));
    _mm512_mask_storeu_ps(to, some, _mm512_mul_ps(step, _mm512_cvtepi32_ps(level)));
}

template <bool CLOSE>
void unpack_four(float* out, size_t out_stride, const char* at, const RowLayout& layout, int count) {
    int rows = count < 4 ? count : 4;
    BiasedLevels levels;
    float rho[4];
    for (int r = 0; r < rows; r++) {
        const char* row = at + size_t(r) * layout.bytes;
        rho[r] = layout.rho[uint8_t(row[layout.bytes - 1])];
        widen_any<V>(out + size_t(r) * out_stride, row, size_t(layout.whole), layout.dtype);
    }
    out += layout.whole;
    for (int b = 0; b < layout.blocks; b++) {
        const RowLayout::Block& block = layout.block[b];
        FourRows<CLOSE> x(at + block.offset, layout.bytes, count);
        for (int c = 0; c < block.sixteens; c++) {
            int first = block.first + 16 * c, left = layout.codes - first;
            __mmask16 some = left >= 16 ? 0xffff : V::first(left);
            __m512i level = ByCode{block}(x, levels, c);
            __m512 step = _mm512_loadu_ps(layout.step + first);
            for (int r = 0; r < rows; r++)
                store_levels(out + size_t(r) * out_stride + first, level, r,
                             _mm512_mul_ps(step, _mm512_set1_ps(rho[r])), some);
        }
    }
}

}  // namespace

void unpack_rows_vbmi(float* out, size_t out_stride, const void* rows, const RowLayout& layout,
                      int count) {
    const char* at = static_cast<const char*>(rows);
    if (!layout.groups) return unpack_rows<V>(out, out_stride, rows, layout, count);
    auto four = layout.close ? unpack_four<true> : unpack_four<false>;
    for (int s = 0; s < count; s += 4, at += 4 * layout.bytes, out += 4 * out_stride)
        four(out, out_stride, at, layout, count - s);
}

void coded_scores_vbmi(float* out, size_t out_stride, const float* q, size_t q_stride,
                       const void* rows, const RowLayout& layout, int m, int count) {
    integer_scores<V>(out, out_stride, q, q_stride, rows, layout, m, count);
}

void coded_accumulate_vbmi(float* acc, size_t acc_stride, const float* p, size_t p_stride,
                           const void* rows, const RowLayout& layout, int m, int count) {
    integer_accumulate<V>(acc, acc_stride, p, p_stride, rows, layout, m, count);
}

}  // namespace stief
