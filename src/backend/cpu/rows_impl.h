// Inner products with, and weighted sums of, rows that lie in memory as they are: decode and its
// attention. Everything here is bound by the bytes of those rows, so each is loaded once and shared
// by as many heads as registers allow.
#pragma once
#include "backend/cpu/elements_impl.h"

namespace stief {
namespace {

// A processor's prefetcher follows a scan only to the end of its page. One sequential scan leaves
// memory waiting at every 4 KB; SCANS of them side by side do not.
constexpr int SCANS = 4;

// out_j (+)= w_j · x for R rows that are `between` rows apart.
template <class V, DType E, int R>
void dot_rows(float* out, const float* x, const char* w, size_t between, size_t K, bool add) {
    constexpr size_t W = V::W;
    const char* from = reinterpret_cast<const char*>(x);
    typename V::F sum[R];
    unroll<R>([&]<int j>() { sum[j] = V::zero(); });
    size_t i = 0, apart = between * K * BYTES<E>;
    auto step = [&](auto... left) {
        auto xi = V::template load<DType::F32>(from + i * 4, left...);
        const char* at = w + i * BYTES<E>;
        unroll<R>([&]<int j>() {
            sum[j] = V::fma(V::template load<E>(at + size_t(j) * apart, left...), xi, sum[j]);
        });
    };
    for (; i + W <= K; i += W) step();
    if (i < K) step(int(K - i));
    unroll<R>([&]<int j>() {
        float one = V::sum(sum[j]), &to = out[size_t(j) * between];
        to = add ? to + one : one;
    });
}

// MATVEC_ROWS scans, each over as many rows that follow one another.
template <class V, DType E>
void matvec(float* out, const float* x, const void* w, size_t rows, size_t K, bool add) {
    constexpr int R = MATVEC_ROWS;
    const char* at = static_cast<const char*>(w);
    size_t each = rows / R, row = K * BYTES<E>;
    for (size_t j = 0; j < each; j++) dot_rows<V, E, R>(out + j, x, at + j * row, each, K, add);
    for (size_t j = R * each; j < rows; j++)
        dot_rows<V, E, 1>(out + j, x, at + j * row, 0, K, add);
}

// out_t,j (+)= w_j · x_t for R rows that are `between` rows apart and M tokens: each sum in the
// order of dot_rows, so that its bits do not tell how many tokens came together.
template <class V, DType E, int R, int M>
void dot_tokens(float* out, size_t out_stride, const float* x, const char* w, size_t between,
                size_t K, bool add) {
    const char* from = reinterpret_cast<const char*>(x);
    typename V::F sum[M][R];
    unroll<M * R>([&]<int i>() { sum[i / R][i % R] = V::zero(); });
    size_t i = 0, apart = between * K * BYTES<E>;
    auto step = [&](auto... left) {
        typename V::F row[R];
        const char* at = w + i * BYTES<E>;
        unroll<R>([&]<int j>() {
            row[j] = V::template load<E>(at + size_t(j) * apart, left...);
        });
        unroll<M>([&]<int t>() {
            auto xi = V::template load<DType::F32>(from + (size_t(t) * K + i) * 4, left...);
            unroll<R>([&]<int j>() { sum[t][j] = V::fma(row[j], xi, sum[t][j]); });
        });
    };
    for (; i + V::W <= K; i += V::W) step();
    if (i < K) step(int(K - i));
    unroll<M * R>([&]<int i>() {
        float one = V::sum(sum[i / R][i % R]);
        float& to = out[size_t(i / R) * out_stride + size_t(i % R) * between];
        to = add ? to + one : one;
    });
}

// M tokens at a time, the last ones by twos and alone.
template <class V, DType E, int R, int M>
void dot_all_tokens(float* out, size_t out_stride, const float* x, const char* w, size_t between,
                    size_t K, int T, bool add) {
    int t = 0;
    auto some = [&]<int N>(Indices<N>) {
        for (; t + N <= T; t += N)
            dot_tokens<V, E, R, N>(out + size_t(t) * out_stride, out_stride, x + size_t(t) * K, w,
                                   between, K, add);
    };
    some(Indices<M>());
    some(Indices<2>());
    some(Indices<1>());
}

// SCANS rows at a time: they stay in the nearest cache while all tokens pass. With 32 registers
// 4 × 6 sums, 4 weights and x; with 16, 4 × 2.
template <class V, DType E>
void matvecs(float* out, size_t out_stride, const float* x, const void* w, size_t rows, size_t K,
             int T, bool add) {
    constexpr int R = SCANS, M = V::TOKENS >= 10 ? 6 : 2;
    const char* at = static_cast<const char*>(w);
    size_t each = rows / R, row = K * BYTES<E>;
    for (size_t j = 0; j < each; j++)
        dot_all_tokens<V, E, R, M>(out + j, out_stride, x, at + j * row, each, K, T, add);
    for (size_t j = R * each; j < rows; j++)
        dot_all_tokens<V, E, 1, M>(out + j, out_stride, x, at + j * row, 0, K, T, add);
}

// out_h,s = q_h · row_s for M heads and R = 1 or SCANS rows that are `between` rows apart. A row is
// `row` bytes, its first r elements of type E.
template <class V, DType E, int M, int R>
void score_block(float* out, size_t out_stride, const char* q, size_t q_bytes, const char* rows,
                 size_t row, size_t between, int r) {
    size_t apart = between * row;
    typename V::F sum[M][R];
    unroll<M * R>([&]<int i>() { sum[i / R][i % R] = V::zero(); });
    auto step = [&](auto... left) {
        typename V::F x[R];
        unroll<R>([&]<int s>() { x[s] = V::template load<E>(rows + size_t(s) * apart, left...); });
        unroll<M>([&]<int h>() {
            auto qi = V::template load<DType::F32>(q + size_t(h) * q_bytes, left...);
            unroll<R>([&]<int s>() { sum[h][s] = V::fma(qi, x[s], sum[h][s]); });
        });
    };
    int i = 0;
    for (; i + V::W <= r; i += V::W, q += V::W * 4, rows += V::W * BYTES<E>) step();
    if (i < r) step(r - i);
    unroll<M>([&]<int h>() {
        float* to = out + size_t(h) * out_stride;
        if constexpr (R == SCANS) {
            float sums[SCANS];
            V::sums(sums, sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
            unroll<SCANS>([&]<int s>() { to[size_t(s) * between] = sums[s]; });
        } else {
            to[0] = V::sum(sum[h][0]);
        }
    });
}

template <class V, DType E, int M>
void score_heads(float* out, size_t out_stride, const float* q, size_t q_stride, const char* at,
                 size_t row, int count, int r) {
    const char* from = reinterpret_cast<const char*>(q);
    size_t q_bytes = q_stride * 4;
    size_t n = size_t(count), quarter = n / SCANS;
    for (size_t s = 0; s < quarter; s++)
        score_block<V, E, M, SCANS>(out + s, out_stride, from, q_bytes, at + s * row, row, quarter,
                                    r);
    for (size_t s = SCANS * quarter; s < n; s++)
        score_block<V, E, M, 1>(out + s, out_stride, from, q_bytes, at + s * row, row, 0, r);
}

// The same for rows so short that summing across a vector would cost more than the products: V::W
// rows are transposed in registers, and a vector holds one coordinate of all of them.
template <class V, DType E, int M>
void score_short(float* out, size_t out_stride, const float* q, size_t q_stride, const char* rows,
                 size_t row, int count, int r) {
    typename V::F sum[M];
    unroll<M>([&]<int h>() { sum[h] = V::zero(); });
    for (int i = 0; i < r; i += V::W) {
        int left = r - i < V::W ? r - i : V::W;
        const char* at = rows + size_t(i) * BYTES<E>;
        typename V::F x[V::W];
        unroll<V::W>([&]<int s>() {
            const char* from = at + size_t(s) * row;
            x[s] = s >= count       ? V::zero()
                   : left == V::W ? V::template load<E>(from)
                                  : V::template load<E>(from, left);
        });
        V::transpose(x);
        for (int j = 0; j < left; j++)
            unroll<M>([&]<int h>() {
                auto qj = V::set1(q[size_t(h) * q_stride + size_t(i + j)]);
                sum[h] = V::fma(qj, x[j], sum[h]);
            });
    }
    unroll<M>([&]<int h>() {
        char* to = reinterpret_cast<char*>(out + size_t(h) * out_stride);
        if (count >= V::W) V::template store<DType::F32>(to, sum[h]);
        else V::template store<DType::F32>(to, sum[h], count);
    });
}

template <class V, DType E, int M>
void score_short_heads(float* out, size_t out_stride, const float* q, size_t q_stride,
                       const char* at, size_t row, int count, int r) {
    int quarter = count / SCANS / V::W * V::W;
    auto some = [&](int s, int n) {
        score_short<V, E, M>(out + s, out_stride, q, q_stride, at + size_t(s) * row, row, n, r);
    };
    for (int s = 0; s < quarter; s += V::W)
        for (int i = 0; i < SCANS; i++) some(i * quarter + s, V::W);
    for (int s = SCANS * quarter; s < count; s += V::W) some(s, count - s);
}

template <class V, DType E>
void scores_apart(float* out, size_t out_stride, const float* q, size_t q_stride, const void* rows,
                  size_t row, int m, int count, int r) {
    const char* at = static_cast<const char*>(rows);
    bool is_short = r <= 2 * V::W;
    for (int h = 0; h < m;) {
        int M = m - h >= 4 ? 4 : m - h;
        auto some = M == 4   ? (is_short ? score_short_heads<V, E, 4> : score_heads<V, E, 4>)
                    : M == 3 ? (is_short ? score_short_heads<V, E, 3> : score_heads<V, E, 3>)
                    : M == 2 ? (is_short ? score_short_heads<V, E, 2> : score_heads<V, E, 2>)
                             : score_heads<V, E, 1>;
        some(out + size_t(h) * out_stride, out_stride, q + size_t(h) * q_stride, q_stride, at, row,
             count, r);
        h += M;
    }
}

template <class V, DType E>
void scores(float* out, size_t out_stride, const float* q, size_t q_stride, const void* rows, int m,
            int count, int r) {
    scores_apart<V, E>(out, out_stride, q, q_stride, rows, size_t(r) * BYTES<E>, m, count, r);
}

// acc_h += Σ_s p_h,s row_s for M heads and C vectors of coordinates, or of C = 1 the first `left`.
template <class V, DType E, int M, int C, class... Left>
void weigh_block(float* acc, size_t acc_stride, const float* p, size_t p_stride, const char* rows,
                 int count, size_t row, Left... left) {
    typename V::F sum[M][C];
    auto at = [&](int h, int c) {
        return reinterpret_cast<char*>(acc + size_t(h) * acc_stride + size_t(c * V::W));
    };
    unroll<M * C>([&]<int i>() {
        sum[i / C][i % C] = V::template load<DType::F32>(at(i / C, i % C), left...);
    });
    auto step = [&](size_t s) {
        typename V::F x[C];
        const char* from = rows + s * row;
        unroll<C>([&]<int c>() {
            x[c] = V::template load<E>(from + size_t(c * V::W) * BYTES<E>, left...);
        });
        unroll<M>([&]<int h>() {
            auto weight = V::set1(p[size_t(h) * p_stride + s]);
            unroll<C>([&]<int c>() { sum[h][c] = V::fma(weight, x[c], sum[h][c]); });
        });
    };
    size_t n = size_t(count), quarter = n / SCANS;
    for (size_t s = 0; s < quarter; s++)
        unroll<SCANS>([&]<int i>() { step(s + i * quarter); });
    for (size_t s = SCANS * quarter; s < n; s++) step(s);
    unroll<M * C>([&]<int i>() {
        V::template store<DType::F32>(at(i / C, i % C), sum[i / C][i % C], left...);
    });
}

template <class V, DType E, int M>
void weigh_heads(float* acc, size_t acc_stride, const float* p, size_t p_stride, const char* at,
                 size_t row, int count, int r) {
    int i = 0;
    for (; i + 4 * V::W <= r; i += 4 * V::W)
        weigh_block<V, E, M, 4>(acc + i, acc_stride, p, p_stride, at + size_t(i) * BYTES<E>, count,
                                row);
    for (; i + V::W <= r; i += V::W)
        weigh_block<V, E, M, 1>(acc + i, acc_stride, p, p_stride, at + size_t(i) * BYTES<E>, count,
                                row);
    if (i < r)
        weigh_block<V, E, M, 1>(acc + i, acc_stride, p, p_stride, at + size_t(i) * BYTES<E>, count,
                                row, r - i);
}

template <class V, DType E>
void accumulate_apart(float* acc, size_t acc_stride, const float* p, size_t p_stride,
                      const void* rows, size_t row, int m, int count, int r) {
    constexpr int MOST = 4 * 4 + 4 + 1 <= V::REGISTERS ? 4 : 2;   // sums, a row and a weight
    const char* at = static_cast<const char*>(rows);
    for (int h = 0; h < m;) {
        int M = m - h >= MOST ? MOST : m - h;
        auto some = M == 4   ? weigh_heads<V, E, MOST>
                    : M == 3 ? weigh_heads<V, E, MOST == 4 ? 3 : MOST>
                    : M == 2 ? weigh_heads<V, E, 2>
                             : weigh_heads<V, E, 1>;
        some(acc + size_t(h) * acc_stride, acc_stride, p + size_t(h) * p_stride, p_stride, at, row,
             count, r);
        h += M;
    }
}

template <class V, DType E>
void accumulate(float* acc, size_t acc_stride, const float* p, size_t p_stride, const void* rows,
                int m, int count, int r) {
    accumulate_apart<V, E>(acc, acc_stride, p, p_stride, rows, size_t(r) * BYTES<E>, m, count, r);
}

}  // namespace
}  // namespace stief
