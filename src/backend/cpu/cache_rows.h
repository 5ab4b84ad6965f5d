// How attention meets the cache's rows: where a store's rows lie, what a token sees of them, how
// they become floats, and small products with a head's basis.
#pragma once
#include <algorithm>

#include "backend/cpu/cpu_backend.h"

namespace stief {

// Rows of one store that lie one after another.
struct Run {
    int first, count;  // positions
    char* rows;        // (count, store.bytes)
    const RowStore& store;
};

// The rows of positions first … end − 1, cut where a ring begins again.
template <class Visit>
void for_runs(const RowStore& store, int first, int end, const Visit& visit) {
    while (first < end) {
        int slot = first, until = end;
        if (store.ring && first < store.fixed) until = std::min(end, store.fixed);
        if (store.ring && first >= store.fixed) {
            int at = (first - store.fixed) % store.ring;
            slot = store.fixed + at, until = std::min(end, first + store.ring - at);
        }
        char* rows = static_cast<char*>(store.data) + size_t(slot) * size_t(store.bytes);
        visit(Run{first, until - first, rows, store});
        first = until;
    }
}

// What a token at `pos` sees of positions first … end − 1, in order, on one side of a head.
template <class Visit>
void for_seen(const Seen& seen, const CacheRows& head, int Stretch::*side, int first, int end,
              int pos, const Visit& visit) {
    for (const Stretch& one : seen)
        for_runs(head.store[one.*side], std::max(first, one.begin_for(pos)),
                 std::min(end, one.end_for(pos)), visit);
}

// out (count, stride) ← the rows' coordinates as floats; columns beyond what they keep are left.
void unpack(const CpuBackend& cpu, float* out, size_t stride, const Run& run, DType dtype);

// out (T, n) = x (T, k) M for the first k rows of M (·, n), rows n apart.
void head_product(const Kernels& kernels, float* out, size_t out_stride, const float* x,
                  size_t x_stride, const float* M, int T, int n, int k);

}  // namespace stief
