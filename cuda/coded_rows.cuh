// Rows of codes on CUDA cores, as plainly as row_format.h says them: a coordinate at a time out of
// its group. Twin: src/backend/row_format.cpp; row_encoder.cuh has the way there.
#pragma once
#include <cstring>
#include <utility>

#include "backend/levels.h"
#include "cache_rows.cuh"

namespace stief {

// BITS, CELL and STEP of RowFormat, and LEVELS: device code sees no static arrays of the host, and an array
// of its own that is indexed as it runs would lie on the stack. Units are a choice among immediates:
// one in memory is far away when a kernel begins.
__device__ __forceinline__ int bits_of(int w) {
    return w == 0 ? 16 : w == 1 ? 8 : 8 - w;
}
enum class Unit { Cell, PerCell, Step, PerStep };
template <Unit UNIT, size_t... W>
__device__ __forceinline__ float unit_among(int w, std::index_sequence<W...>) {
    float x = 0;
    auto meet = [&]<size_t ONE>() {
        constexpr bool cells = UNIT == Unit::Cell || UNIT == Unit::PerCell;
        constexpr bool inverse = UNIT == Unit::PerCell || UNIT == Unit::PerStep;
        constexpr float unit = cells ? RowFormat::CELL[ONE + 1] : RowFormat::STEP[ONE + 1];
        constexpr float one = inverse ? 1 / unit : unit;
        x = w == int(ONE) + 1 ? one : x;
    };
    (meet.template operator()<W>(), ...);
    return x;
}
// δ, 1 / δ, Δ or 1 / Δ of a width's number, of elements 0; without a division's many instructions.
template <Unit UNIT>
__device__ __forceinline__ float unit_of(int w) {
    return unit_among<UNIT>(w, std::make_index_sequence<RowFormat::WIDTHS - 1>());
}
__device__ __forceinline__ float step_of(int w) {
    return unit_of<Unit::Step>(w);
}
alignas(16) static __device__ const Levels DEVICE_LEVELS = LEVELS;
static_assert(RowFormat::BITS[2] == 6 && RowFormat::BITS[7] == 1);
__device__ __forceinline__ float log2_scale_of(int scale) {
    return float(scale) / 8 - 16;
}
__device__ __forceinline__ float scale_of(int scale) {
    return power_of_two(log2_scale_of(scale));
}

// Where a coordinate's code is: its width, the group's first byte, its place in the group.
struct CodePlace {
    int w = 0, byte, n;
    __device__ CodePlace(const RowFormat& format, int element, int j)
        : byte(int(format.count[0]) * element) {
        j -= int(format.count[0]);
        for (w = 1; j >= int(format.count[w]); w++) {
            j -= int(format.count[w]);
            byte += int(format.count[w]) / ROW_GROUP * bits_of(w);
        }
        byte += j / ROW_GROUP * bits_of(w), n = j % ROW_GROUP;
    }
};

// to (columns) ← a row's coordinates first … first + columns − 1, which it has, by `threads` threads of which
// this is number `tid`.
template <class E>
__device__ __forceinline__ void unpack_row(float* to, const RowStore& store, const char* row, int first,
                                           int columns, int tid, int threads) {
    const RowFormat& format = store.format;
    int whole = int(format.count[0]);
    float rho = coded(format) ? scale_of(uint8_t(row[store.bytes - 1])) : 0;
    for (int i = tid; i < columns; i += threads) {
        int j = first + i;
        if (j < whole) {
            E element;  // rows of codes lie at any address
            memcpy(&element, row + size_t(j) * sizeof(E), sizeof(E));
            to[i] = to_float(element);
            continue;
        }
        CodePlace at(format, int(sizeof(E)), j);
        int bits = bits_of(at.w), bit = at.n * bits, code = 0;
        for (int b = bit / 8; b <= (bit + bits - 1) / 8; b++)
            code |= int(uint8_t(row[at.byte + b])) << (8 * (b - bit / 8));
        code = code >> (bit % 8) & ((1 << bits) - 1);
        to[i] = rho * step_of(at.w) * float(DEVICE_LEVELS.of[at.w][code]);
    }
}

}  // namespace stief
