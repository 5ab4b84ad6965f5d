// Numbers in 16 bits of a fixed point, which levels of codes (levels.h) multiply as integers: what is
// exact in vbmi_*.h and avx2_*.h.
#pragma once
#include "backend/cpu/rows_impl.h"

namespace stief {
namespace {

constexpr int HEADS = 4;                     // at once
constexpr float LARGEST = 32767;

// The unit of some numbers, so large that none exceeds 16 bits in it nor their sum `limit`; NaN
// where one of them is not finite. largest and sum: of their sizes, by lanes.
template <class V>
struct Fixed {
    float unit, inverse;

    Fixed(typename V::F largest, typename V::F sum, float limit) {
        float most = V::largest(largest), all = V::sum(sum);
        unit = most / LARGEST > all / limit ? most / LARGEST : all / limit;
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
    size_t columns;
    float *unit, *mean;                      // (columns) ×2
    char* n;                                 // (codes / 2, columns, 2) 16-bit integers
    float* whole;                            // (whole, columns)

    CodePanel(const void* panel, const RowLayout& layout, int d)
        : columns((size_t(d) + 15) / 16 * 16),
          unit(static_cast<float*>(const_cast<void*>(panel))),
          mean(unit + columns),
          n(reinterpret_cast<char*>(mean + columns)),
          whole(reinterpret_cast<float*>(n + size_t(layout.codes) * columns * 2)) {}
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

}  // namespace
}  // namespace stief
