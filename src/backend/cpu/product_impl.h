// The blocked product: a matrix's rows are packed into panels (kernels.h) that stay in the nearest
// caches, and every panel serves all tokens. A tile of M tokens times C vectors of outputs stays in
// registers over the whole of k. (Goto and van de Geijn 2008, with the weights as the packed side.)
//
// Each output is one sum over k in ascending order, whatever tile it falls into: results do not
// depend on how tokens and outputs are divided.
#pragma once
#include "backend/cpu/rows_impl.h"

namespace stief {
namespace {

// out = sum, or += where add, of M tokens and n <= C · W outputs. Part of its caller: sums that a call
// is given are in memory, not in registers.
template <class V, int M, int C>
__attribute__((always_inline)) inline void write_tile(float* out, size_t out_stride,
                                                      const typename V::F (&sum)[M][C], int n,
                                                      bool add) {
    auto write = [&](float* to, typename V::F x, auto... left) {
        char* at = reinterpret_cast<char*>(to);
        auto before = add ? V::template load<DType::F32>(at, left...) : V::zero();
        V::template store<DType::F32>(at, V::add(before, x), left...);
    };
    unroll<M * C>([&]<int i>() {
        constexpr int t = i / C, c = i % C;
        float* to = out + size_t(t) * out_stride + c * V::W;
        int left = n - c * V::W;
        if (left >= V::W) write(to, sum[t][c]);
        else if (left > 0) write(to, sum[t][c], left);
    });
}

// P: what one step over k multiplies and its two types of element, see Plain here and Pairs in
// dot_avx512.cpp.
template <class V, class P, int M, int C>
void tile(float* out, size_t out_stride, const char* x, size_t x_bytes, const char* panel,
          size_t panel_bytes, int n, int steps, bool add) {
    typename V::F sum[M][C];
    unroll<M * C>([&]<int i>() {
        __builtin_prefetch(out + size_t(i / C) * out_stride + i % C * V::W,
                           1);  // written at the end
        sum[i / C][i % C] = V::zero();
    });
    for (int i = 0; i < steps; i++, x += 4, panel += panel_bytes) {
        typename P::Vector w[C];
        unroll<C>([&]<int c>() { w[c] = P::load(panel + c * V::W * 4); });
        unroll<M>([&]<int t>() {
            auto xt = P::broadcast(x + size_t(t) * x_bytes);
            unroll<C>([&]<int c>() { sum[t][c] = P::multiply_add(xt, w[c], sum[t][c]); });
        });
    }
    write_tile<V, M, C>(out, out_stride, sum, n, add);
}

// The last T < M tokens.
template <class V, class P, int M, int C>
void tile_tail(float* out, size_t out_stride, const char* x, size_t x_bytes, const char* panel,
               size_t panel_bytes, int T, int n, int steps, bool add) {
    if constexpr (M > 1) {
        if (T == M - 1)
            tile<V, P, M - 1, C>(out, out_stride, x, x_bytes, panel, panel_bytes, n, steps, add);
        else
            tile_tail<V, P, M - 1, C>(out, out_stride, x, x_bytes, panel, panel_bytes, T, n, steps,
                                      add);
    }
}

template <class V, class P, int C>
void tiles(float* out, size_t out_stride, const char* x, size_t x_bytes, const char* panel,
           size_t panel_bytes, int T, int n, int steps, bool add) {
    constexpr int M = V::TOKENS;
    for (; T >= M; T -= M, out += size_t(M) * out_stride, x += size_t(M) * x_bytes)
        tile<V, P, M, C>(out, out_stride, x, x_bytes, panel, panel_bytes, n, steps, add);
    if (T > 0)
        tile_tail<V, P, M, C>(out, out_stride, x, x_bytes, panel, panel_bytes, T, n, steps, add);
}

// One step multiplies one f32 coordinate.
template <class V>
struct Plain {
    using Vector = typename V::F;
    static Vector load(const char* at) { return V::template load<DType::F32>(at); }
    static Vector broadcast(const char* at) { return V::broadcast(at); }
    static Vector multiply_add(Vector x, Vector w, Vector sum) { return V::fma(x, w, sum); }
};

template <class V>
void product(float* out, size_t out_stride, const float* x, size_t x_stride, const float* panel,
             size_t panel_stride, int T, int n, int k, bool add) {
    auto some = n > V::W ? tiles<V, Plain<V>, V::COLUMNS> : tiles<V, Plain<V>, 1>;
    some(out, out_stride, reinterpret_cast<const char*>(x), x_stride * 4,
         reinterpret_cast<const char*>(panel), panel_stride * 4, T, n, k, add);
}

// Panel of n <= lanes rows, W rows and W coordinates at a time through a transpose in registers.
template <class V, DType E>
void pack(float* panel, const void* w, size_t w_stride, int n, int k) {
    constexpr int W = V::W, LANES = W * V::COLUMNS;
    for (int j0 = 0; j0 < LANES; j0 += W)
        for (int i0 = 0; i0 < k; i0 += W) {
            int left = k - i0 < W ? k - i0 : W;
            typename V::F rows[W];
            for (int j = 0; j < W; j++) {
                const char* at = static_cast<const char*>(w) +
                                 (size_t(j0 + j) * w_stride + size_t(i0)) * BYTES<E>;
                rows[j] = j0 + j >= n   ? V::zero()
                          : left == W ? V::template load<E>(at)
                                      : V::template load<E>(at, left);
            }
            V::transpose(rows);
            for (int i = 0; i < left; i++)
                V::template store<DType::F32>(
                    reinterpret_cast<char*>(panel + size_t(i0 + i) * LANES + j0), rows[i]);
        }
}

// The same with two bf16 where the plain panel has one f32; k is filled with zeros to PAIRS_K.
template <class V>
void pack_pairs(void* panel, const void* w, size_t w_stride, int n, int k) {
    constexpr int W = V::W, LANES = W * V::COLUMNS;
    int padded = (k + PAIRS_K - 1) / PAIRS_K * PAIRS_K;
    for (int j0 = 0; j0 < LANES; j0 += W)
        for (int i0 = 0; i0 < padded; i0 += 2 * W) {
            int left = k - i0 < 2 * W ? k - i0 : 2 * W;
            typename V::F rows[W];
            for (int j = 0; j < W; j++) {
                const char* at =
                    static_cast<const char*>(w) + (size_t(j0 + j) * w_stride + size_t(i0)) * 2;
                __builtin_prefetch(at + size_t(W) * w_stride * 2);   // W rows on, or the next panel
                if (j0 + j >= n || left <= 0) {
                    rows[j] = V::zero();
                } else if (left == 2 * W) {
                    rows[j] = V::template load<DType::F32>(at);
                } else {
                    char tail[4 * W] = {};
                    __builtin_memcpy(tail, at, size_t(left) * 2);
                    rows[j] = V::template load<DType::F32>(tail);
                }
            }
            V::transpose(rows);
            char* to = static_cast<char*>(panel) + (size_t(i0 / 2) * LANES + size_t(j0)) * 4;
            for (int i = 0; i < W && i0 + 2 * i < padded; i++)
                V::template store<DType::F32>(to + size_t(i) * LANES * 4, rows[i]);
        }
}

}  // namespace
}  // namespace stief
