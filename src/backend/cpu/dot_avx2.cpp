// AVX2 with FMA and F16C. Compiled with its own flags; chosen by isa.cpp.
#include "backend/cpu/avx2_product.h"
#include "backend/cpu/avx2_scores.h"
#include "backend/cpu/avx2_sums.h"
#include "backend/cpu/kernels_impl.h"

namespace stief {

static constexpr Kernels with_integers() {
    Kernels table = make_table<V>("avx2");
    table.coded_scores = integer_scores<V>;
    table.coded_accumulate = integer_accumulate<V>;
    table.code_panel = code_panel_avx2;
    table.coded_product = coded_product_avx2;
    return table;
}

const Kernels kernels_avx2 = with_integers();

}  // namespace stief
