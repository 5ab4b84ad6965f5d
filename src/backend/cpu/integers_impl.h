// Levels of codes (levels.h) times numbers in 16 bits of a fixed point, as integers: what vbmi_*.h and
// avx2_*.h share.
#pragma once
#include "backend/cpu/coded_impl.h"

namespace stief {
namespace {

constexpr int HEADS = 4;                     // at once
constexpr float MOST_IN_SUM = 1.677e7f;      // · 128 < 2³¹, with ½ for the rounding of 2048
constexpr size_t AHEAD = 1536;               // bytes: the prefetcher stops at a page's end
constexpr int TILE = 256;                    // rows of a weighted sum: 256 · 255 · 32767 < 2³¹

// The unit of some numbers, so large that none exceeds `each` in it nor their sum `limit`; NaN
// where one of them is not finite. largest and sum: of their sizes, by lanes.
template <class V>
struct Fixed {
    float unit, inverse;

    Fixed(typename V::F largest, typename V::F sum, float each, float limit) {
        float most = V::largest(largest), all = V::sum(sum);
        unit = most / each > all / limit ? most / each : all / limit;
        // smaller ones would have no inverse
        if (unit < 0x1p-120f) unit = 0;
        inverse = unit > 0 ? 1 / unit : 0;
        if (!(all < __builtin_inff())) unit = __builtin_nanf(""), inverse = 0;
    }
    // In units, not yet rounded.
    typename V::F scaled(typename V::F x) const { return V::mul(x, V::set1(inverse)); }
};

// Where the parts of a panel of code_panel (kernels.h) are.
struct CodePanel {
    int* head;
    size_t columns;
    float *unit, *mean;                      // (columns) ×2
    int* constant;                           // (columns): 128 Σ n, of biased levels
    char* n;                                 // the integers, as each instruction set multiplies them
    float* whole;                            // (whole, columns)

    CodePanel(const void* panel, const RowLayout& layout, int d)
        : head(static_cast<int*>(const_cast<void*>(panel))),
          columns((size_t(d) + 15) / 16 * 16),
          unit(reinterpret_cast<float*>(head + 16)),
          mean(unit + columns),
          constant(reinterpret_cast<int*>(mean + columns)),
          n(reinterpret_cast<char*>(constant + columns)),
          whole(reinterpret_cast<float*>(n + size_t(layout.codes) * columns * 2)) {}
    int& fine() const { return *head; }      // coordinates that want more than a byte, the first ones
};

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

// The codes of M heads, of each instruction set: out_h,s (+)= q_h · c_s, added where there are whole
// elements, and acc_h += Σ_s p_h,s c_s. acc begins with the codes.
template <int M>
void score_codes(float* out, size_t out_stride, const float* q, size_t q_stride, const char* rows,
                 const RowLayout& layout, int count);
template <int M>
void weigh_codes(float* acc, size_t acc_stride, const float* p, size_t p_stride, const char* rows,
                 const RowLayout& layout, int count);

// coded_scores and coded_accumulate of kernels.h by these.
template <class V>
void integer_scores(float* out, size_t out_stride, const float* q, size_t q_stride, const void* rows,
                    const RowLayout& layout, int m, int count) {
    if (layout.whole || !layout.groups)
        whole_scores<V>(out, out_stride, q, q_stride, rows, layout, m, count);
    if (!layout.groups) return;
    by_heads(m, [&]<int M>(size_t h) {
        score_codes<M>(out + h * out_stride, out_stride, q + h * q_stride, q_stride,
                       static_cast<const char*>(rows), layout, count);
    });
}

template <class V>
void integer_accumulate(float* acc, size_t acc_stride, const float* p, size_t p_stride,
                        const void* rows, const RowLayout& layout, int m, int count) {
    if (layout.whole)
        whole_accumulate<V>(acc, acc_stride, p, p_stride, rows, layout, m, count);
    if (!layout.groups) return;
    by_heads(m, [&]<int M>(size_t h) {
        weigh_codes<M>(acc + h * acc_stride + layout.whole, acc_stride, p + h * p_stride, p_stride,
                       static_cast<const char*>(rows), layout, count);
    });
}

}  // namespace
}  // namespace stief
