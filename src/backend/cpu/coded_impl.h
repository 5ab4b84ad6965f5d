// Rows of mixed widths (row_format.h, row_layout.h) for any instruction set: unpacked a tile at a
// time, in f32, into the functions of f32 rows; packed a row at a time.
#pragma once
#include "backend/cpu/rows_impl.h"

namespace stief {
namespace {

constexpr int CODED_TILE = 4096;             // floats: rows that are unpacked at once

// out (8) ← step (code − middle) of one group. The first four codes lie in the lower 32 bits, the
// last four in as many from bit 4 b on: a vector of words shifted by their own distances.
inline void unpack_group(float* out, const char* from, int bits, float step) {
    uint64_t word;
    __builtin_memcpy(&word, from, 8);
    uint32_t low = uint32_t(word), high = uint32_t(word >> (4 * bits)), mask = (1u << bits) - 1;
    float middle = 0.5f * float(mask);
    uint32_t code[8] = {low, low, low, low, high, high, high, high};
    for (uint32_t n = 0; n < 8; n++) code[n] = code[n] >> (n % 4 * uint32_t(bits)) & mask;
    for (int n = 0; n < 8; n++) out[n] = step * (float(int(code[n])) - middle);
}

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
            unpack_group(to, row + group.offset, group.bits, rho * group.step);
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

// The cells that the codes of x fall into, counted from the middle one up, and what scale a costs:
// see code_of and cost_of of row_format.cpp.
template <class V>
typename V::F cell_of(typename V::F x, typename V::F half) {
    auto below = V::sub(half, V::set1(0.5f)), least = V::sub(V::zero(), half);
    return V::floor(V::larger(least, V::smaller(x, below)));
}

struct CodedRow {
    const RowLayout& layout;
    const float *x, *weight;                 // (codes, filled with zeros), (… with zeros)
    int filled;
};

template <class V>
float scale_cost(const CodedRow& row, int scale) {
    const RowLayout& layout = row.layout;
    auto rho = V::set1(layout.rho[scale]), inverse_rho = V::set1(layout.rho[256 - scale]);
    auto middle = V::set1(0.5f), sum = V::zero();
    for (size_t i = 0; i < size_t(row.filled); i += V::W) {
        auto at = [&](const float* p) { return load<V, DType::F32>(p, i, V::W); };
        auto x = at(row.x), inverse = V::mul(at(layout.inverse), inverse_rho);
        auto level = V::add(cell_of<V>(V::mul(x, inverse), at(layout.half)), middle);
        auto error = V::sub(V::mul(V::mul(rho, at(layout.step)), level), x);
        sum = V::add(sum, V::mul(V::mul(at(row.weight), error), error));
    }
    return V::sum(sum);
}

// As search_scale of row_format.cpp.
template <class V>
int search_scale(const CodedRow& row) {
    double square = 0, all = 0;
    for (int i = 0; i < row.layout.codes; i++) {
        double x = double(row.x[i]), w = double(row.weight[i]);
        square += w * x * x, all += w;
    }
    double rms = __builtin_sqrt(square / all), exponent = rms > 0 ? 255 : 0;
    if (rms > 0 && rms < __builtin_inf()) exponent = 8 * __builtin_log2(rms) + 128;
    int start = exponent < 0 ? 0 : exponent > 255 ? 255 : int(exponent + 0.5), best = start;
    float least = __builtin_inff();
    auto offer = [&](int scale) {
        if (scale < 0 || scale > 255) return;
        float cost = scale_cost<V>(row, scale);
        if (cost < least) least = cost, best = scale;
    };
    for (int away : {0, -8, -4, 4, 8, 12, 16}) offer(start + away);
    for (int near : {2, 1}) {
        int middle = best;
        offer(middle - near), offer(middle + near);
    }
    return best;
}

template <class V>
void pack_codes(char* to, const CodedRow& row, float* codes) {
    const RowLayout& layout = row.layout;
    int scale = search_scale<V>(row);
    auto inverse_rho = V::set1(layout.rho[256 - scale]);
    for (size_t i = 0; i < size_t(row.filled); i += V::W) {
        auto half = load<V, DType::F32>(layout.half, i, V::W);
        auto inverse = V::mul(load<V, DType::F32>(layout.inverse, i, V::W), inverse_rho);
        auto cell = cell_of<V>(V::mul(load<V, DType::F32>(row.x, i, V::W), inverse), half);
        store<V, DType::F32>(codes, i, V::W, V::add(cell, half));
    }
    for (int g = 0; g < layout.groups; g++, codes += 8) {
        int bits = layout.group[g].bits;
        uint64_t word = 0;
        for (int n = 0; n < 8; n++) word |= uint64_t(int(codes[n])) << (n * bits);
        __builtin_memcpy(to + layout.group[g].offset, &word, size_t(bits));
    }
    to[layout.bytes - 1] = char(scale);
}

template <class V>
void pack_rows(void* rows, const float* x, size_t x_stride, const float* weight,
               const RowLayout& layout, int count) {
    alignas(64) float coded[RowLayout::MOST], codes[RowLayout::MOST], weights[RowLayout::MOST];
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
        pack_codes<V>(to, {layout, coded, weights, filled}, codes);
    }
}

}  // namespace
}  // namespace stief
