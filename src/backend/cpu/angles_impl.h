// Scores of positions themselves: w · (cos, sin)_s, which a turned mean adds to every key's (cache_rows.cpp).
// The table of angles is read once in SPAN positions: w is turned there, and meets the columns of
// angles.h, which stay in the nearest cache; only the first SPAN positions meet their own angles. A
// position's sum is the same whatever else is asked. The bound is a multiplication a column, position and
// head, position by lane.
#pragma once
#include "backend/cpu/product_impl.h"

namespace stief {
namespace {

// Loaded once for all heads: compilers would load it again for each.
template <class F>
inline void stay_in_register(F& x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
}

constexpr size_t ANGLE_WEIGHTS = 2 * Angles::PIECE;

// turned (M, 2 n) ← w of n pairs from j0 on at the first of SPAN positions: what meets a cosine, then
// what meets a sine.
template <class V, int M>
void turn_weights(float (&turned)[M][ANGLE_WEIGHTS], const float* w, size_t w_stride, const float* angle,
                  size_t half, size_t j0, size_t n) {
    auto at = [](const float* p, size_t j, int left) { return load<V, DType::F32>(p, j, left); };
    for (size_t j = 0; j < n; j += V::W) {
        int left = n - j < V::W ? int(n - j) : V::W;
        auto cos = at(angle + j0, j, left), sin = at(angle + j0 + half, j, left);
        for (int h = 0; h < M; h++) {
            const float* from = w + size_t(h) * w_stride + j0;
            auto a = at(from, j, left), b = at(from + half, j, left);
            store<V, DType::F32>(turned[h], j, left, V::fma(a, cos, V::mul(b, sin)));
            store<V, DType::F32>(turned[h] + n, j, left, V::sub(V::mul(b, cos), V::mul(a, sin)));
        }
    }
}

inline const char* as_bytes(const float* p) {
    return reinterpret_cast<const char*>(p);
}

// value (M, NODES)
template <class V, int M>
void sums_at_nodes(float (&value)[M][Angles::NODES], const float* w, size_t w_stride, const float* angle,
                   const Angles& angles) {
    constexpr int AT_ONCE = Angles::NODES / V::W > 2 ? 2 : Angles::NODES / V::W;
    size_t half = size_t(angles.half), slow = half - size_t(angles.fast);
    alignas(64) float turned[M][ANGLE_WEIGHTS];
    __builtin_memset(value, 0, sizeof value);
    for (size_t j0 = 0; j0 < slow; j0 += Angles::PIECE) {
        size_t n = slow - j0 < Angles::PIECE ? slow - j0 : Angles::PIECE;
        turn_weights<V, M>(turned, w, w_stride, angle, half, size_t(angles.fast) + j0, n);
        for (int at = 0; at < Angles::NODES; at += AT_ONCE * V::W) {
            typename V::F part[M][AT_ONCE][2];
            unroll<M * AT_ONCE>([&]<int i>() {
                constexpr int h = i / AT_ONCE, x = i % AT_ONCE;
                part[h][x][0] = V::template load<DType::F32>(as_bytes(value[h] + at + x * V::W));
                part[h][x][1] = V::zero();
            });
            const float *cos = angles.node + j0 * Angles::NODES + at, *sin = cos + slow * Angles::NODES;
            for (size_t j = 0; j < n; j++, cos += Angles::NODES, sin += Angles::NODES)
                unroll<AT_ONCE>([&]<int x>() {
                    auto c = V::template load<DType::F32>(as_bytes(cos + x * V::W));
                    auto s = V::template load<DType::F32>(as_bytes(sin + x * V::W));
                    stay_in_register(c), stay_in_register(s);
                    unroll<M>([&]<int h>() {
                        part[h][x][0] = V::fma(V::set1(turned[h][j]), c, part[h][x][0]);
                        part[h][x][1] = V::fma(V::set1(turned[h][n + j]), s, part[h][x][1]);
                    });
                });
            unroll<M * AT_ONCE>([&]<int i>() {
                constexpr int h = i / AT_ONCE, x = i % AT_ONCE;
                store<V, DType::F32>(value[h] + at, size_t(x) * V::W, V::W,
                                     V::add(part[h][x][0], part[h][x][1]));
            });
        }
    }
}

// sum_h,s += weight_h · column_s for positions first … end − 1 of SPAN, whole vectors of them.
template <class V, int M>
void add_columns(float (&sum)[M][Angles::SPAN], const float* weight, size_t w_stride,
                 const float* column, size_t n, int first, int end) {
    constexpr int AT_ONCE = 2;    // vectors of positions
    constexpr int STEP = AT_ONCE * V::W;
    for (int at = first / STEP * STEP; at < end; at += STEP) {
        typename V::F part[M][AT_ONCE];
        unroll<M * AT_ONCE>([&]<int i>() {
            constexpr int h = i / AT_ONCE, x = i % AT_ONCE;
            part[h][x] = V::template load<DType::F32>(as_bytes(sum[h] + at + x * V::W));
        });
        const float* from = column + at;
        for (size_t j = 0; j < n; j++, from += Angles::SPAN)
            unroll<AT_ONCE>([&]<int x>() {
                auto position = V::template load<DType::F32>(as_bytes(from + x * V::W));
                stay_in_register(position);
                unroll<M>([&]<int h>() {
                    part[h][x] = V::fma(V::set1(weight[size_t(h) * w_stride + j]), position, part[h][x]);
                });
            });
        unroll<M * AT_ONCE>([&]<int i>() {
            constexpr int h = i / AT_ONCE, x = i % AT_ONCE;
            store<V, DType::F32>(sum[h] + at, size_t(x) * V::W, V::W, part[h][x]);
        });
    }
}

// The positions of one SPAN, from its first on: first … end − 1 of them.
template <class V, int M>
void sums_of_span(float (&sum)[M][Angles::SPAN], const float* w, size_t w_stride, const Angles& angles,
                  const float* angle, int first, int end) {
    size_t half = size_t(angles.half), fast = size_t(angles.fast);
    alignas(64) float weight[M][ANGLE_WEIGHTS], value[M][Angles::NODES];
    const float* column = angles.column;
    __builtin_memset(sum, 0, sizeof sum);
    for (size_t j0 = 0, n; j0 < fast; j0 += n, column += 2 * n * Angles::SPAN) {
        n = fast - j0 < Angles::PIECE ? fast - j0 : Angles::PIECE;
        turn_weights<V, M>(weight, w, w_stride, angle, half, j0, n);
        add_columns<V, M>(sum, weight[0], ANGLE_WEIGHTS, column, 2 * n, first, end);
    }
    if (!angles.nodes) return;
    sums_at_nodes<V, M>(value, w, w_stride, angle, angles);
    add_columns<V, M>(sum, value[0], Angles::NODES, column, size_t(angles.nodes), first, end);
}

template <class V, int M>
void add_angles_of(float* out, size_t out_stride, const float* w, size_t w_stride, const Angles& angles,
                   const float* rotation, int first, int count, size_t half) {
    alignas(64) float sum[M][Angles::SPAN];
    int s = first, end = first + count;
    for (; s < end && s < Angles::SPAN; s++)
        for (int h = 0; h < M; h++) {
            const float *one = w + size_t(h) * w_stride, *angle = rotation + size_t(s) * 2 * half;
            auto all = V::zero();
            for (size_t i = 0; i < 2 * half; i += V::W) {
                int n = 2 * half - i < V::W ? int(2 * half - i) : V::W;
                all = V::fma(load<V, DType::F32>(one, i, n), load<V, DType::F32>(angle, i, n), all);
            }
            out[size_t(h) * out_stride + size_t(s - first)] += V::sum(all);
        }
    for (int stop; s < end; s = stop) {
        int base = s / Angles::SPAN * Angles::SPAN;
        stop = end < base + Angles::SPAN ? end : base + Angles::SPAN;
        sums_of_span<V, M>(sum, w, w_stride, angles, rotation + size_t(base) * 2 * half, s - base,
                           stop - base);
        for (int h = 0; h < M; h++)
            for (int i = s; i < stop; i++)
                out[size_t(h) * out_stride + size_t(i - first)] += sum[h][i - base];
    }
}

template <class V>
void add_angles(float* out, size_t out_stride, const float* w, size_t w_stride, const Angles& angles,
                const float* rotation, int first, int count, int m, size_t half) {
    for (int h = 0, M; h < m; h += M) {
        M = m - h >= 4 ? 4 : m - h;
        auto some = M == 4   ? add_angles_of<V, 4>
                    : M == 3 ? add_angles_of<V, 3>
                    : M == 2 ? add_angles_of<V, 2>
                             : add_angles_of<V, 1>;
        some(out + size_t(h) * out_stride, out_stride, w + size_t(h) * w_stride, w_stride, angles,
             rotation, first, count, half);
    }
}

}  // namespace
}  // namespace stief
