// Scores of positions themselves: w · (cos, sin)_s, which a turned mean adds to every key's (cache_rows.cpp).
// The table of angles is read once in NEAR positions: w is turned there, and meets the angles of
// 0 … NEAR − 1, which stay in the nearest cache. A position's sum is the same whatever else is asked.
// The bound is 2 half multiplications a position and head, position by lane.
#pragma once
#include "backend/cpu/product_impl.h"

namespace stief {
namespace {

// Loaded once for all heads: compilers load it again for each (4 % of decode at a depth of 8,064).
template <class F>
inline void stay_in_register(F& x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
}

template <class V, int M>
void add_angles_of(float* out, size_t out_stride, const float* w, size_t w_stride, const float* near,
                   const float* rotation, int first, int count, size_t half) {
    constexpr size_t PIECE = 64;  // frequencies
    constexpr int AT_ONCE = 2;    // vectors of positions
    alignas(64) float turned[M][2][PIECE], sum[M][NEAR];
    for (int s = first, end = first + count, stop; s < end; s = stop) {
        int base = s / NEAR * NEAR;
        stop = end < base + NEAR ? end : base + NEAR;
        const float* angle = rotation + size_t(base) * 2 * half;
        __builtin_memset(sum, 0, sizeof sum);
        for (size_t j0 = 0; j0 < half; j0 += PIECE) {
            size_t n = half - j0 < PIECE ? half - j0 : PIECE;
            for (int h = 0; h < M; h++) {
                const float *a = w + size_t(h) * w_stride + j0, *b = a + half;
                const float *cos = angle + j0, *sin = cos + half;
                for (size_t j = 0; j < n; j++) {
                    turned[h][0][j] = a[j] * cos[j] + b[j] * sin[j];
                    turned[h][1][j] = b[j] * cos[j] - a[j] * sin[j];
                }
            }
            for (int at = 0; at < NEAR; at += AT_ONCE * V::W) {
                typename V::F part[M][AT_ONCE];
                auto address = [](const float* p) { return reinterpret_cast<const char*>(p); };
                unroll<M * AT_ONCE>([&]<int i>() {
                    constexpr int h = i / AT_ONCE, x = i % AT_ONCE;
                    part[h][x] = V::template load<DType::F32>(address(sum[h] + at + x * V::W));
                });
                for (size_t side = 0; side < 2; side++) {
                    const float* from = near + (side * half + j0) * NEAR + at;
                    for (size_t j = 0; j < n; j++, from += NEAR) {
                        typename V::F position[AT_ONCE];
                        unroll<AT_ONCE>([&]<int x>() {
                            position[x] = V::template load<DType::F32>(address(from + x * V::W));
                            stay_in_register(position[x]);
                        });
                        unroll<M>([&]<int h>() {
                            auto by = V::set1(turned[h][side][j]);
                            unroll<AT_ONCE>([&]<int x>() {
                                part[h][x] = V::fma(by, position[x], part[h][x]);
                            });
                        });
                    }
                }
                unroll<M * AT_ONCE>([&]<int i>() {
                    constexpr int h = i / AT_ONCE, x = i % AT_ONCE;
                    store<V, DType::F32>(sum[h] + at, size_t(x) * V::W, V::W, part[h][x]);
                });
            }
        }
        for (int h = 0; h < M; h++)
            for (int i = s; i < stop; i++)
                out[size_t(h) * out_stride + size_t(i - first)] += sum[h][i - base];
    }
}

template <class V>
void add_angles(float* out, size_t out_stride, const float* w, size_t w_stride, const float* near,
                const float* rotation, int first, int count, int m, size_t half) {
    for (int h = 0, M; h < m; h += M) {
        M = m - h >= 4 ? 4 : m - h;
        auto some = M == 4   ? add_angles_of<V, 4>
                    : M == 3 ? add_angles_of<V, 3>
                    : M == 2 ? add_angles_of<V, 2>
                             : add_angles_of<V, 1>;
        some(out + size_t(h) * out_stride, out_stride, w + size_t(h) * w_stride, w_stride, near,
             rotation, first, count, half);
    }
}

}  // namespace
}  // namespace stief
