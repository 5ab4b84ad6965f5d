// How attention meets the cache's rows: which of them are exact for a token, and small products with
// a head's basis.
#pragma once
#include <algorithm>

#include "backend/cpu/cpu_backend.h"

namespace stief {

// Rows that lie one after another and have the same width.
struct Run {
    int first, count;         // positions
    const char* rows;         // (count, r) of the cache's dtype
    int r;
};

// After the sinks, the first position that a token at `pos` sees exactly.
inline int near_begin(const CacheLayer& cache, int pos) {
    return std::max(cache.sinks, pos - cache.recent + 1);
}

// The exact rows of positions first … end − 1: the sinks, then the ring, which may wrap.
template <class Visit>
void for_exact_runs(const CacheLayer& cache, const CacheRows& head, int first, int end,
                    const Visit& visit) {
    size_t row = size_t(cache.d) * size_of(cache.dtype);
    while (first < end) {
        int slot = first, until = std::min(end, cache.sinks);
        if (first >= cache.sinks) {
            int at = (first - cache.sinks) % cache.ring;
            slot = cache.sinks + at;
            until = std::min(end, first + cache.ring - at);
        }
        const char* rows = static_cast<const char*>(head.exact) + size_t(slot) * row;
        visit(Run{first, until - first, rows, cache.d});
        first = until;
    }
}

template <class Visit>
void for_cut_runs(const CacheLayer& cache, const CacheRows& head, int first, int end,
                  const Visit& visit) {
    size_t row = size_t(head.r) * size_of(cache.dtype);
    const char* rows = static_cast<const char*>(head.data) + size_t(first) * row;
    if (first < end) visit(Run{first, end - first, rows, head.r});
}

// The rows of positions first … end − 1 as a token at `pos` sees them, in order.
template <class Visit>
void for_runs(const CacheLayer& cache, const CacheRows& head, int first, int end, int pos,
              const Visit& visit) {
    if (!head.exact) return for_cut_runs(cache, head, first, end, visit);
    int near = near_begin(cache, pos);
    for_exact_runs(cache, head, first, std::min(end, cache.sinks), visit);
    for_cut_runs(cache, head, std::max(first, cache.sinks), std::min(end, near), visit);
    for_exact_runs(cache, head, std::max(first, near), end, visit);
}

// out (T, n) = x (T, k) M for the first k rows of M (·, n), rows n apart.
void head_product(const Kernels& kernels, float* out, size_t out_stride, const float* x,
                  size_t x_stride, const float* M, int T, int n, int k);

}  // namespace stief
