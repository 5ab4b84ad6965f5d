// Rows of mixed widths (row_format.h, row_layout.h) for any instruction set: unpacked a tile at a
// time, in f32, into the functions of f32 rows; packed a row at a time.
#pragma once
#include "backend/cpu/rows_impl.h"

namespace stief {
namespace {

constexpr int CODED_TILE = 4096;             // floats: rows that are unpacked at once

// How a group of b bits is taken apart: code n is in the 32 bits from byte n b / 8 on, n b % 8 bits
// up; spread brings those bytes into 8 words.
struct GroupTable {
    alignas(32) uint8_t spread[32];
    alignas(32) int32_t shift[8];
    int32_t mask;
    int bits;
};

struct GroupTables {
    GroupTable of[9];                        // by b

    constexpr GroupTables() : of() {
        for (int b = 1; b <= 8; b++) {
            for (int n = 0; n < 8; n++) {
                of[b].shift[n] = n * b % 8;
                // the highest byte is never needed, and may not be one of the 8
                for (int byte = 0; byte < 4; byte++)
                    of[b].spread[4 * n + byte] = uint8_t(n * b / 8 + (byte < 3 ? byte : 0));
            }
            of[b].mask = (1 << b) - 1;
            of[b].bits = b;
        }
    }
};
constexpr GroupTables GROUPS;

template <class V>
void widen_any(float* out, const void* in, size_t n, DType dtype) {
    if (dtype == DType::F32) widen<V, DType::F32>(out, in, n);
    else if (dtype == DType::F16) widen<V, DType::F16>(out, in, n);
    else widen<V, DType::BF16>(out, in, n);
}

template <class V>
void unpack_rows(float* out, size_t out_stride, const void* rows, const RowLayout& layout,
                 int count) {
    const char* row = static_cast<const char*>(rows);
    for (int s = 0; s < count; s++, row += layout.bytes, out += out_stride) {
        if (layout.whole) widen_any<V>(out, row, size_t(layout.whole), layout.dtype);
        if (!layout.groups) continue;
        float rho = layout.rho[uint8_t(row[layout.bytes - 1])], *to = out + layout.whole;
        for (int g = 0; g < layout.groups; g++, to += 8) {
            const RowLayout::Group& group = layout.group[g];
            V::levels(to, row + group.offset, GROUPS.of[group.bits], group.level,
                      rho * group.step);
        }
    }
}

// Calls f(first, rows, count) with f32 rows of layout.kept, a tile at a time.
template <class V, class Function>
void for_unpacked(const void* rows, const RowLayout& layout, int count, const Function& f) {
    alignas(64) float tile[CODED_TILE];
    int most = CODED_TILE / (layout.kept ? layout.kept : 1);
    for (int s = 0; s < count; s += most) {
        int some = count - s < most ? count - s : most;
        unpack_rows<V>(tile, size_t(layout.kept),
                       static_cast<const char*>(rows) + size_t(s) * layout.bytes, layout, some);
        f(s, tile, some);
    }
}

// The whole elements of such rows, where they lie.
template <class V>
void whole_scores(float* out, size_t out_stride, const float* q, size_t q_stride, const void* rows,
                  const RowLayout& layout, int m, int count) {
    auto some = layout.dtype == DType::F32   ? scores_apart<V, DType::F32>
                : layout.dtype == DType::F16 ? scores_apart<V, DType::F16>
                                             : scores_apart<V, DType::BF16>;
    some(out, out_stride, q, q_stride, rows, layout.bytes, m, count, layout.whole);
}

template <class V>
void whole_accumulate(float* acc, size_t acc_stride, const float* p, size_t p_stride,
                      const void* rows, const RowLayout& layout, int m, int count) {
    auto some = layout.dtype == DType::F32   ? accumulate_apart<V, DType::F32>
                : layout.dtype == DType::F16 ? accumulate_apart<V, DType::F16>
                                             : accumulate_apart<V, DType::BF16>;
    some(acc, acc_stride, p, p_stride, rows, layout.bytes, m, count, layout.whole);
}

template <class V>
void coded_scores(float* out, size_t out_stride, const float* q, size_t q_stride, const void* rows,
                  const RowLayout& layout, int m, int count) {
    if (!layout.groups)
        return whole_scores<V>(out, out_stride, q, q_stride, rows, layout, m, count);
    for_unpacked<V>(rows, layout, count, [&](int s, const float* tile, int some) {
        scores<V, DType::F32>(out + s, out_stride, q, q_stride, tile, m, some, layout.kept);
    });
}

template <class V>
void coded_accumulate(float* acc, size_t acc_stride, const float* p, size_t p_stride,
                      const void* rows, const RowLayout& layout, int m, int count) {
    if (!layout.groups)
        return whole_accumulate<V>(acc, acc_stride, p, p_stride, rows, layout, m, count);
    for_unpacked<V>(rows, layout, count, [&](int s, const float* tile, int some) {
        accumulate<V, DType::F32>(acc, acc_stride, p + s, p_stride, tile, m, some, layout.kept);
    });
}

// Where RowLayout::nearest has the levels nearest to x, which is in halves of a step: see code_of
// of row_format.cpp.
template <class V>
typename V::F place_of(typename V::F x, typename V::F middle) {
    auto least = V::set1(-256), most = V::set1(255);    // Levels::HALVES in all
    return V::add(V::floor(V::larger(least, V::smaller(x, most))), middle);
}

struct CodedRow {
    const RowLayout& layout;
    const float *x, *weight;                 // (codes, filled with zeros), (… with zeros)
    int filled;
};

// N scales to be tried.
template <int N>
struct Scales {
    float rho[N], inverse[N];

    Scales(const RowLayout& layout, const int* scale) {
        for (int k = 0; k < N; k++) {
            int s = scale[k] < 0 ? 0 : scale[k] > 255 ? 255 : scale[k];
            rho[k] = layout.rho[s], inverse[k] = layout.rho[256 - s];
        }
    }
};

// What scales cost: sum (N) ← Σ w (ρ δ L − x)² by lanes.
template <class V>
struct ScaleCosts {
    template <int N>
    void operator()(typename V::F (&sum)[N], const CodedRow& row, const Scales<N>& scales) const {
        const RowLayout& layout = row.layout;
        for (size_t i = 0; i < size_t(row.filled); i += V::W) {
            auto at = [&](const float* p) { return load<V, DType::F32>(p, i, V::W); };
            auto x = at(row.x), w = at(row.weight), cell = at(layout.cell);
            auto in_halves = V::mul(x, at(layout.halves)), middle = at(layout.middle);
            unroll<N>([&]<int k>() {
                auto place = place_of<V>(V::mul(in_halves, V::set1(scales.inverse[k])), middle);
                auto level = V::lookup(layout.nearest, place);
                auto error = V::sub(V::mul(V::mul(V::set1(scales.rho[k]), cell), level), x);
                sum[k] = V::fma(V::mul(w, error), error, sum[k]);
            });
        }
    }
};

// cost (N) ← what each of N scales costs; ∞ where there is no such scale.
template <class V, class Costs, int N>
void scale_costs(float* cost, const CodedRow& row, const int* scale) {
    typename V::F sum[N];
    unroll<N>([&]<int k>() { sum[k] = V::zero(); });
    Costs()(sum, row, Scales<N>(row.layout, scale));
    unroll<N>([&]<int k>() {
        cost[k] = scale[k] < 0 || scale[k] > 255 ? __builtin_inff() : V::sum(sum[k]);
    });
}

// The root of the weighted mean square. In double where f32's squares could overflow or vanish.
template <class V>
double weighted_rms(const CodedRow& row) {
    auto squares = V::zero(), weights = V::zero();
    for (size_t i = 0; i < size_t(row.filled); i += V::W) {
        auto x = load<V, DType::F32>(row.x, i, V::W), w = load<V, DType::F32>(row.weight, i, V::W);
        squares = V::fma(V::mul(w, x), x, squares), weights = V::add(weights, w);
    }
    double square = double(V::sum(squares)), all = double(V::sum(weights));
    if (square > 1e-20 && square < 1e20 && all > 1e-20) return __builtin_sqrt(square / all);
    square = all = 0;
    for (int i = 0; i < row.layout.codes; i++) {
        double x = double(row.x[i]), w = double(row.weight[i]);
        square += w * x * x, all += w;
    }
    return __builtin_sqrt(square / all);
}

// As search_scale of row_format.cpp.
template <class V, class Costs>
int search_scale(const CodedRow& row) {
    double rms = weighted_rms<V>(row), exponent = rms > 0 ? 255 : 0;
    if (rms > 0 && rms < __builtin_inf()) exponent = 8 * __builtin_log2(rms) + 128;
    int start = exponent < 0 ? 0 : exponent > 255 ? 255 : int(exponent + 0.5), best = start;
    float least = __builtin_inff(), cost[7];
    auto offer = [&](const int* scale, int n) {
        for (int i = 0; i < n; i++) {        // nothing to predict
            bool better = cost[i] < least;
            least = better ? cost[i] : least, best = better ? scale[i] : best;
        }
    };
    int far[7] = {start, start - 8, start - 4, start + 4, start + 8, start + 12, start + 16};
    scale_costs<V, Costs, 7>(cost, row, far);
    offer(far, 7);
    for (int away : {2, 1}) {
        int near[2] = {best - away, best + away};
        scale_costs<V, Costs, 2>(cost, row, near);
        offer(near, 2);
    }
    return best;
}

template <class V, class Costs>
void pack_codes(char* to, const CodedRow& row) {
    const RowLayout& layout = row.layout;
    alignas(64) float places[RowLayout::FILL];
    int scale = search_scale<V, Costs>(row);
    auto inverse_rho = V::set1(layout.rho[256 - scale]);
    for (int g = 0; g < layout.groups; g += RowLayout::FILL / 8) {
        for (size_t n = 0; n < RowLayout::FILL; n += V::W) {
            size_t i = size_t(g) * 8 + n;
            auto x = V::mul(load<V, DType::F32>(row.x, i, V::W),
                            load<V, DType::F32>(layout.halves, i, V::W));
            auto middle = load<V, DType::F32>(layout.middle, i, V::W);
            store<V, DType::F32>(places, n, V::W,
                                 place_of<V>(V::mul(x, inverse_rho), middle));
        }
        int32_t code[RowLayout::FILL];
        for (int n = 0; n < RowLayout::FILL; n++)
            code[n] = layout.nearest_code[int32_t(places[n])];
        for (int at = g; at < g + 2 && at < layout.groups; at++) {
            const int32_t* c = code + 8 * (at - g);
            int b = layout.group[at].bits;
            uint32_t low = uint32_t(c[0] | c[1] << b) | uint32_t(c[2] | c[3] << b) << 2 * b;
            uint32_t high = uint32_t(c[4] | c[5] << b) | uint32_t(c[6] | c[7] << b) << 2 * b;
            uint64_t word = low | uint64_t(high) << 4 * b;
            __builtin_memcpy(to + layout.group[at].offset, &word, size_t(b));
        }
    }
    to[layout.bytes - 1] = char(scale);
}

template <class V, class Costs = ScaleCosts<V>>
void pack_rows(void* rows, const float* x, size_t x_stride, const float* weight,
               const RowLayout& layout, int count) {
    alignas(64) float coded[RowLayout::MOST], weights[RowLayout::MOST];
    int filled = (layout.codes + RowLayout::FILL - 1) / RowLayout::FILL * RowLayout::FILL;
    for (int i = 0; i < filled; i++) {
        coded[i] = 0;
        weights[i] = i >= layout.codes ? 0 : weight ? weight[layout.whole + i] : 1;
    }
    char* to = static_cast<char*>(rows);
    for (int s = 0; s < count; s++, to += layout.bytes, x += x_stride) {
        size_t n = size_t(layout.whole);
        if (layout.dtype == DType::F32) narrow<V, DType::F32>(to, x, n);
        else if (layout.dtype == DType::F16) narrow<V, DType::F16>(to, x, n);
        else narrow<V, DType::BF16>(to, x, n);
        if (!layout.groups) continue;
        __builtin_memcpy(coded, x + n, size_t(layout.codes) * 4);
        pack_codes<V, Costs>(to, {layout, coded, weights, filled});
    }
}

}  // namespace
}  // namespace stief
