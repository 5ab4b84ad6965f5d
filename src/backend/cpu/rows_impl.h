// Inner products with, and weighted sums of, rows that lie in memory as they are: decode and its
// attention. Everything here is bound by the bytes of those rows, so each is loaded once and shared by
// as many heads as registers allow.
//
// V is the instruction set's vector (dot_*.cpp). Like all of *_impl.h this is compiled once for each set
// with that set's flags: an unnamed namespace and no inline function of any other header, so that the
// linker cannot pick a copy with AVX-512 in it for code that runs on a processor without.
#pragma once
#include <cstddef>
#include <cstdint>

#include "backend/cpu/kernels.h"

namespace stief {
namespace {

template <DType E>
constexpr size_t BYTES = E == DType::F32 ? 4 : 2;

// out_j (+)= w_j · x for R rows at once: R streams keep the memory busy, x is loaded once for all.
// Two sums a row, so that additions do not wait for one another.
template <class V, DType E, int R>
void dot_rows(float* out, const float* x, const char* w, size_t K, bool add) {
    constexpr size_t W = V::W;
    const char* from = reinterpret_cast<const char*>(x);
    typename V::F even[R], odd[R];
    for (int j = 0; j < R; j++) even[j] = odd[j] = V::zero();

    size_t i = 0, row = K * BYTES<E>;
    for (; i + 2 * W <= K; i += 2 * W) {
        auto x0 = V::template load<DType::F32>(from + i * 4);
        auto x1 = V::template load<DType::F32>(from + (i + W) * 4);
        for (int j = 0; j < R; j++) {
            const char* at = w + size_t(j) * row + i * BYTES<E>;
            V::prefetch(at + V::PREFETCH);
            even[j] = V::fma(V::template load<E>(at), x0, even[j]);
            odd[j] = V::fma(V::template load<E>(at + W * BYTES<E>), x1, odd[j]);
        }
    }
    for (; i < K; i += W) {
        int left = K - i < W ? int(K - i) : int(W);
        auto x0 = V::template load<DType::F32>(from + i * 4, left);
        for (int j = 0; j < R; j++) {
            const char* at = w + size_t(j) * row + i * BYTES<E>;
            even[j] = V::fma(V::template load<E>(at, left), x0, even[j]);
        }
    }
    for (int j = 0; j < R; j++) {
        float sum = V::sum(V::add(even[j], odd[j]));
        out[j] = add ? out[j] + sum : sum;
    }
}

template <class V, DType E>
void matvec(float* out, const float* x, const void* w, size_t rows, size_t K, bool add) {
    const char* at = static_cast<const char*>(w);
    size_t j = 0;
    for (; j + 4 <= rows; j += 4) dot_rows<V, E, 4>(out + j, x, at + j * K * BYTES<E>, K, add);
    for (; j < rows; j++) dot_rows<V, E, 1>(out + j, x, at + j * K * BYTES<E>, K, add);
}

// out_h,s = q_h · row_s for M heads and R rows at once.
template <class V, DType E, int M, int R>
void score_block(float* out, size_t out_stride, const char* q, size_t q_bytes, const char* rows,
                 int r) {
    size_t row = size_t(r) * BYTES<E>;
    typename V::F acc[M][R];
    for (int h = 0; h < M; h++)
        for (int s = 0; s < R; s++) acc[h][s] = V::zero();

    for (int i = 0; i < r; i += V::W) {
        int left = r - i < V::W ? r - i : V::W;
        typename V::F x[R];
        for (int s = 0; s < R; s++) {
            const char* at = rows + size_t(s) * row + size_t(i) * BYTES<E>;
            x[s] = left == V::W ? V::template load<E>(at) : V::template load<E>(at, left);
        }
        for (int h = 0; h < M; h++) {
            const char* at = q + size_t(h) * q_bytes + size_t(i) * 4;
            auto qi = left == V::W ? V::template load<DType::F32>(at)
                                   : V::template load<DType::F32>(at, left);
            for (int s = 0; s < R; s++) acc[h][s] = V::fma(qi, x[s], acc[h][s]);
        }
    }
    for (int h = 0; h < M; h++)
        for (int s = 0; s < R; s++) out[size_t(h) * out_stride + size_t(s)] = V::sum(acc[h][s]);
}

template <class V, DType E, int M>
void score_heads(float* out, size_t out_stride, const float* q, size_t q_stride, const void* rows,
                 int count, int r) {
    const char* from = reinterpret_cast<const char*>(q);
    const char* at = static_cast<const char*>(rows);
    size_t row = size_t(r) * BYTES<E>, q_bytes = q_stride * 4;
    int s = 0;
    for (; s + 4 <= count; s += 4)
        score_block<V, E, M, 4>(out + s, out_stride, from, q_bytes, at + size_t(s) * row, r);
    for (; s < count; s++)
        score_block<V, E, M, 1>(out + s, out_stride, from, q_bytes, at + size_t(s) * row, r);
}

template <class V, DType E>
void scores(float* out, size_t out_stride, const float* q, size_t q_stride, const void* rows, int m,
            int count, int r) {
    for (int h = 0; h < m;) {
        int M = m - h >= 4 ? 4 : m - h >= 2 ? 2 : 1;
        auto some = M == 4 ? score_heads<V, E, 4> : M == 2 ? score_heads<V, E, 2> : score_heads<V, E, 1>;
        some(out + size_t(h) * out_stride, out_stride, q + size_t(h) * q_stride, q_stride, rows,
             count, r);
        h += M;
    }
}

// acc_h += Σ_s p_h,s row_s for M heads and C vectors of coordinates, the last of `left` coordinates.
template <class V, DType E, int M, int C>
void weigh_block(float* acc, size_t acc_stride, const float* p, size_t p_stride, const char* rows,
                 int count, size_t row, int left) {
    typename V::F sum[M][C];
    for (int h = 0; h < M; h++)
        for (int c = 0; c < C; c++) sum[h][c] = V::zero();
    bool whole = left == V::W;
    for (int s = 0; s < count; s++, rows += row) {
        typename V::F x[C];
        for (int c = 0; c < C; c++) {
            const char* at = rows + size_t(c * V::W) * BYTES<E>;
            bool partial = c == C - 1 && !whole;
            x[c] = partial ? V::template load<E>(at, left) : V::template load<E>(at);
        }
        for (int h = 0; h < M; h++) {
            auto weight = V::set1(p[size_t(h) * p_stride + size_t(s)]);
            for (int c = 0; c < C; c++) sum[h][c] = V::fma(weight, x[c], sum[h][c]);
        }
    }
    for (int h = 0; h < M; h++)
        for (int c = 0; c < C; c++) {
            char* at = reinterpret_cast<char*>(acc + size_t(h) * acc_stride + size_t(c * V::W));
            int n = c == C - 1 ? left : V::W;
            auto before = V::template load<DType::F32>(at, n);
            V::template store<DType::F32>(at, V::add(before, sum[h][c]), n);
        }
}

template <class V, DType E, int M>
void weigh_heads(float* acc, size_t acc_stride, const float* p, size_t p_stride, const void* rows,
                 int count, int r) {
    for (int i = 0; i < r;) {
        int vectors = (r - i + V::W - 1) / V::W;
        int C = vectors >= 4 ? 4 : vectors >= 2 ? 2 : 1;
        int width = r - i < C * V::W ? r - i : C * V::W;
        auto some = C == 4   ? weigh_block<V, E, M, 4>
                    : C == 2 ? weigh_block<V, E, M, 2>
                             : weigh_block<V, E, M, 1>;
        some(acc + i, acc_stride, p, p_stride, static_cast<const char*>(rows) + size_t(i) * BYTES<E>,
             count, size_t(r) * BYTES<E>, width - (C - 1) * V::W);
        i += width;
    }
}

template <class V, DType E>
void accumulate(float* acc, size_t acc_stride, const float* p, size_t p_stride, const void* rows,
                int m, int count, int r) {
    for (int h = 0; h < m;) {
        int M = m - h >= 4 ? 4 : m - h >= 2 ? 2 : 1;
        auto some = M == 4 ? weigh_heads<V, E, 4> : M == 2 ? weigh_heads<V, E, 2> : weigh_heads<V, E, 1>;
        some(acc + size_t(h) * acc_stride, acc_stride, p + size_t(h) * p_stride, p_stride, rows,
             count, r);
        h += M;
    }
}

}  // namespace
}  // namespace stief
