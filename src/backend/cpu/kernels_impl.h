// Functions of single rows and of rows in the nearest cache; the table of one instruction set. See
// elements_impl.h for the rules.
#pragma once
#include "backend/cpu/angles_impl.h"
#include "backend/cpu/coded_impl.h"
#include "backend/cpu/product_impl.h"

namespace stief {
namespace {

// e^x = 2^n e^r with n = round(x / ln 2), r = x − n ln 2 in [−ln 2 / 2, ln 2 / 2] by two-part ln 2
// (Cody and Waite 1980); e^r by its Taylor polynomial of degree 7, whose remainder is 6e-9 there.
// Below −106 the result is 0 and above 89 it is ∞, so the clamps lose nothing and keep n small. NaN
// stays NaN: larger(a, b) and smaller(a, b) are b where either is NaN.
template <class V>
typename V::F exp(typename V::F x) {
    x = V::larger(V::set1(-106.0f), V::smaller(V::set1(89.0f), x));
    auto n = V::round(V::mul(x, V::set1(1.44269504f)));
    auto r = V::fma(n, V::set1(-0.693359375f), x);            // exact: 9 bits of ln 2
    r = V::fma(n, V::set1(2.12194440e-4f), r);
    auto y = V::set1(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        y = V::fma(y, r, V::set1(c));
    return V::times_power_of_2(y, n);
}

template <class V>
float largest(const float* x, size_t n) {
    constexpr float LOWEST = -__builtin_inff();
    auto most = V::set1(LOWEST);
    size_t i = 0;
    for (; i + V::W <= n; i += V::W) most = V::larger(load<V, DType::F32>(x, i, V::W), most);
    float result = V::largest(most);
    for (; i < n; i++) result = x[i] > result ? x[i] : result;
    return result;
}

template <class V>
float exp_sum(float* x, size_t n, float shift) {
    auto minus = V::set1(-shift), sum = V::zero();
    float rest = 0;
    for_vectors<V>(n, [&](size_t i, int width) {
        auto y = exp<V>(V::add(load<V, DType::F32>(x, i, width), minus));
        store<V, DType::F32>(x, i, width, y);
        if (width == V::W) sum = V::add(sum, y);
        else
            for (int j = 0; j < width; j++) rest += x[i + size_t(j)];
    });
    return V::sum(sum) + rest;
}

// Σ of term(i, width) for i = 0, W, …: at most 1024 terms in float, those in double.
template <class V, class Term>
double blocked_sum(size_t n, const Term& term) {
    double total = 0;
    for (size_t begin = 0; begin < n; begin += 1024) {
        auto sum = V::zero();
        float last[16];
        double rest = 0;
        for_vectors<V>(n - begin < 1024 ? n - begin : 1024, [&](size_t i, int width) {
            auto one = term(begin + i, width);
            if (width == V::W) {
                sum = V::add(sum, one);
            } else {
                store<V, DType::F32>(last, 0, width, one);
                for (int j = 0; j < width; j++) rest += double(last[j]);
            }
        });
        total += double(V::sum(sum)) + rest;
    }
    return total;
}

template <class V>
double exp_total(const float* x, size_t n, float shift) {
    auto minus = V::set1(-shift);
    return blocked_sum<V>(n, [&](size_t i, int width) {
        return exp<V>(V::add(load<V, DType::F32>(x, i, width), minus));
    });
}

// p (e^δ − 1 − δ) = q − p − p δ; by its series where that would cancel.
template <class V>
double divergence(const float* zp, const float* zq, size_t n, const DivergenceOf& of) {
    auto minus_p = V::set1(-of.most_p), minus_q = V::set1(-of.most_q), shift = V::set1(of.shift);
    auto scale_p = V::set1(of.scale_p), scale_q = V::set1(of.scale_q);
    return blocked_sum<V>(n, [&](size_t i, int width) {
        auto a = V::add(load<V, DType::F32>(zp, i, width), minus_p);
        auto b = V::add(load<V, DType::F32>(zq, i, width), minus_q);
        auto p = V::mul(exp<V>(a), scale_p), q = V::mul(exp<V>(b), scale_q);
        auto delta = V::sub(V::sub(b, a), shift), square = V::mul(delta, delta);
        auto series = V::set1(1.0f / 5040);
        for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f})
            series = V::fma(series, delta, V::set1(c));
        auto plain = V::sub(V::sub(q, p), V::mul(p, delta));
        return V::where_less(square, V::set1(0.0625f), V::mul(V::mul(p, square), series), plain);
    });
}

template <class V>
void scale(float* x, size_t n, float factor) {
    for_vectors<V>(n, [&](size_t i, int width) {
        store<V, DType::F32>(x, i, width,
                             V::mul(load<V, DType::F32>(x, i, width), V::set1(factor)));
    });
}

template <class V>
void rotate(float* x, const float* angle, size_t half) {
    for_vectors<V>(half, [&](size_t i, int width) {
        auto a = load<V, DType::F32>(x, i, width), b = load<V, DType::F32>(x + half, i, width);
        auto cos = load<V, DType::F32>(angle, i, width);
        auto sin = load<V, DType::F32>(angle + half, i, width);
        store<V, DType::F32>(x, i, width, V::sub(V::mul(a, cos), V::mul(b, sin)));
        store<V, DType::F32>(x + half, i, width, V::add(V::mul(b, cos), V::mul(a, sin)));
    });
}

// out_h,s = q_h · x_s turned by its position's angles, as rotate does, for M heads and R = 1 or
// SCANS rows that follow one another. A row is turned in registers, once for all heads.
template <class V, int M, int R>
void turned_block(float* out, size_t out_stride, const char* q, size_t q_bytes, const char* x,
                  const char* angle, size_t half) {
    size_t row = 2 * half * 4;
    typename V::F sum[M][R];
    unroll<M * R>([&]<int i>() { sum[i / R][i % R] = V::zero(); });
    auto step = [&](size_t i, auto... left) {
        auto load = [&](const char* at) {
            return V::template load<DType::F32>(at + i * 4, left...);
        };
        typename V::F qa[M], qb[M];
        unroll<M>([&]<int h>() {
            qa[h] = load(q + size_t(h) * q_bytes), qb[h] = load(q + size_t(h) * q_bytes + half * 4);
        });
        unroll<R>([&]<int s>() {
            const char *at = x + size_t(s) * row, *turn = angle + size_t(s) * row;
            auto a = load(at), b = load(at + half * 4);
            auto cos = load(turn), sin = load(turn + half * 4);
            auto ta = V::sub(V::mul(a, cos), V::mul(b, sin));
            auto tb = V::fma(b, cos, V::mul(a, sin));
            unroll<M>([&]<int h>() {
                sum[h][s] = V::fma(qb[h], tb, V::fma(qa[h], ta, sum[h][s]));
            });
        });
    };
    size_t i = 0;
    for (; i + V::W <= half; i += V::W) step(i);
    if (i < half) step(i, int(half - i));
    unroll<M>([&]<int h>() {
        float* to = out + size_t(h) * out_stride;
        if constexpr (R == SCANS) V::sums(to, sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
        else to[0] = V::sum(sum[h][0]);
    });
}

template <class V, int M>
void turned_heads(float* out, size_t out_stride, const float* q, size_t q_stride, const float* x,
                  const float* angle, int count, size_t half) {
    auto bytes = [](const float* p) { return reinterpret_cast<const char*>(p); };
    int s = 0;
    for (; s + SCANS <= count; s += SCANS)
        turned_block<V, M, SCANS>(out + s, out_stride, bytes(q), q_stride * 4,
                                  bytes(x + size_t(s) * 2 * half),
                                  bytes(angle + size_t(s) * 2 * half), half);
    for (; s < count; s++)
        turned_block<V, M, 1>(out + s, out_stride, bytes(q), q_stride * 4,
                              bytes(x + size_t(s) * 2 * half),
                              bytes(angle + size_t(s) * 2 * half), half);
}

template <class V>
void turned_scores(float* out, size_t out_stride, const float* q, size_t q_stride, const float* x,
                   const float* angle, int m, int count, size_t half) {
    for (int h = 0; h < m;) {
        int M = m - h >= 4 ? 4 : m - h;
        auto some = M == 4   ? turned_heads<V, 4>
                    : M == 3 ? turned_heads<V, 3>
                    : M == 2 ? turned_heads<V, 2>
                             : turned_heads<V, 1>;
        some(out + size_t(h) * out_stride, out_stride, q + size_t(h) * q_stride, q_stride, x, angle,
             count, half);
        h += M;
    }
}

template <class V>
void swiglu(float* gate, const float* up, size_t n) {
    auto one = V::set1(1.0f);
    for_vectors<V>(n, [&](size_t i, int width) {
        auto z = load<V, DType::F32>(gate, i, width), u = load<V, DType::F32>(up, i, width);
        auto silu = V::div(z, V::add(one, exp<V>(V::sub(V::zero(), z))));
        store<V, DType::F32>(gate, i, width, V::mul(silu, u));
    });
}

// Four scans at a time, each over a quarter: see SCANS of rows_impl.h for why.
template <class V>
uint64_t checksum(const void* memory, size_t bytes) {
    using Words = typename V::Words;
    constexpr size_t SIZE = sizeof(Words);
    const char* at = static_cast<const char*>(memory);
    size_t quarter = bytes / (SCANS * SIZE) * SIZE;
    Words sum[SCANS] = {};
    for (size_t i = 0; i < quarter; i += SIZE)
        for (size_t j = 0; j < SCANS; j++) {
            Words words;
            __builtin_memcpy(&words, at + j * quarter + i, SIZE);
            sum[j] += words;
        }
    Words all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    uint64_t result = 0;
    for (size_t j = 0; j < SIZE / 8; j++) result += all[j];
    for (size_t i = SCANS * quarter; i < bytes; i += 8) {
        uint64_t word = 0;
        __builtin_memcpy(&word, at + i, bytes - i < 8 ? bytes - i : 8);
        result += word;
    }
    return result;
}

template <class V>
constexpr Kernels make_table(const char* name) {
    constexpr DType F32 = DType::F32, F16 = DType::F16, BF16 = DType::BF16;
    return {
        .name = name,
        .lanes = V::W * V::COLUMNS,
        .matvec = {matvec<V, F32>, matvec<V, F16>, matvec<V, BF16>},
        .matvecs = {matvecs<V, F32>, matvecs<V, F16>, matvecs<V, BF16>},
        .scores = {scores<V, F32>, scores<V, F16>, scores<V, BF16>},
        .accumulate = {accumulate<V, F32>, accumulate<V, F16>, accumulate<V, BF16>},
        .pack_rows = pack_rows<V>,
        .unpack_rows = unpack_rows<V>,
        .coded_scores = coded_scores<V>,
        .coded_accumulate = coded_accumulate<V>,
        .code_panel = nullptr,
        .coded_product = nullptr,
        .turned_scores = turned_scores<V>,
        .add_angles = add_angles<V>,
        .largest = largest<V>,
        .exp_sum = exp_sum<V>,
        .exp_total = exp_total<V>,
        .divergence = divergence<V>,
        .scale = scale<V>,
        .rotate = rotate<V>,
        .swiglu = swiglu<V>,
        .widen = {widen<V, F32>, widen<V, F16>, widen<V, BF16>},
        .narrow = {narrow<V, F32>, narrow<V, F16>, narrow<V, BF16>},
        .pack = {pack<V, F32>, pack<V, F16>, pack<V, BF16>},
        .pack_pairs = pack_pairs<V>,
        .pair_rows = nullptr,
        .product = product<V>,
        .product_pairs = nullptr,
        .split = {},
        .checksum = checksum<V>,
    };
}

}  // namespace
}  // namespace stief
