// The blocked product: a matrix's rows are packed into panels (kernels.h) that stay in the nearest
// caches, and every panel serves all tokens. A tile of M tokens times C vectors of outputs stays in
// registers over the whole of k. (Goto and van de Geijn 2008, with the weights as the packed side.)
//
// Each output is one sum over k in ascending order, whatever tile it falls into: results do not depend
// on how tokens and outputs are divided.
#pragma once
#include "backend/cpu/rows_impl.h"

namespace stief {
namespace {

// Adds or stores sums whose last vectors are partly or wholly beyond the n outputs.
template <class V, int C>
void write_part(float* out, const typename V::F* sum, int n, bool add) {
    for (int c = 0; c < C && c * V::W < n; c++) {
        int width = n - c * V::W < V::W ? n - c * V::W : V::W;
        char* at = reinterpret_cast<char*>(out + c * V::W);
        auto before = add ? V::template load<DType::F32>(at, width) : V::zero();
        V::template store<DType::F32>(at, V::add(before, sum[c]), width);
    }
}

// The compiler keeps `sum` in registers as long as every index into it is a constant: loops over whole
// tiles unroll, and the partial path works on a copy.
template <class V, int M, int C>
void write_tile(float* out, size_t out_stride, const typename V::F (&sum)[M][C], int n, bool add) {
    if (n == C * V::W) {
        for (int t = 0; t < M; t++)
            for (int c = 0; c < C; c++) {
                char* at = reinterpret_cast<char*>(out + size_t(t) * out_stride + c * V::W);
                auto before = add ? V::template load<DType::F32>(at) : V::zero();
                V::template store<DType::F32>(at, V::add(before, sum[t][c]));
            }
        return;
    }
    typename V::F copy[M][C];
    for (int t = 0; t < M; t++)
        for (int c = 0; c < C; c++) copy[t][c] = sum[t][c];
    for (int t = 0; t < M; t++) write_part<V, C>(out + size_t(t) * out_stride, copy[t], n, add);
}

// P: what one step over k multiplies and its two types of element, see Plain and Pairs below.
template <class V, class P, int M, int C>
void tile(float* out, size_t out_stride, const char* x, size_t x_bytes, const char* panel,
          size_t panel_bytes, int n, int steps, bool add) {
    typename V::F sum[M][C];
    for (int t = 0; t < M; t++)
        for (int c = 0; c < C; c++) {
            __builtin_prefetch(out + size_t(t) * out_stride + c * V::W, 1);   // written at the end
            sum[t][c] = V::zero();
        }
    for (int i = 0; i < steps; i++, x += 4, panel += panel_bytes) {
        typename P::Vector w[C];
        for (int c = 0; c < C; c++) w[c] = P::load(panel + c * V::W * 4);
        for (int t = 0; t < M; t++) {
            auto xt = P::broadcast(x + size_t(t) * x_bytes);
            for (int c = 0; c < C; c++) sum[t][c] = P::multiply_add(xt, w[c], sum[t][c]);
        }
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
                const char* at = static_cast<const char*>(w) + (size_t(j0 + j) * w_stride + size_t(i0)) * 2;
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
