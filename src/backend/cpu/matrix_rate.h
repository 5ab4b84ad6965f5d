// What prefill is measured against, as decode is against stream(): the inner loop of the blocked
// product on operands that stay in the nearest cache, on every thread at once. Two threads of one
// core share its units, so this is measured and not counted from the instruction's width.
#pragma once
#include "backend/cpu/kernels.h"
#include "base/threads.h"

namespace stief {

// Multiplications and additions a second, of product_pairs where `pairs`, else of product.
double matrix_rate(const Kernels& kernels, Threads& threads, bool pairs);

}  // namespace stief
