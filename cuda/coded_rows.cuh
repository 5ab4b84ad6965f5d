// Rows of codes on CUDA cores, as plainly as row_format.h says them: a coordinate at a time out of
// its group, and the encoder's search by a warp for each row. Twin: src/backend/row_format.cpp.
#pragma once
#include <array>
#include <cstring>

#include "backend/levels.h"
#include "cache_rows.cuh"

namespace stief {

// BITS and STEP of RowFormat, and LEVELS: device code sees no static arrays of the host, and an array
// of its own that is indexed as it runs would lie on the stack.
__device__ __forceinline__ int bits_of(int w) {
    return w == 0 ? 16 : w == 1 ? 8 : 8 - w;
}
static __device__ const std::array<float, RowFormat::WIDTHS> DEVICE_STEP = RowFormat::STEP;
__device__ __forceinline__ float step_of(int w) {
    return DEVICE_STEP[size_t(w)];
}
// 1 / step_of, without a division's many instructions.
constexpr std::array<float, RowFormat::WIDTHS> inverse_steps() {
    std::array<float, RowFormat::WIDTHS> by{};
    for (size_t w = 1; w < by.size(); w++) by[w] = 1 / RowFormat::STEP[w];
    return by;
}
static __device__ const std::array<float, RowFormat::WIDTHS> DEVICE_BY_STEP = inverse_steps();
__device__ __forceinline__ float by_step_of(int w) {
    return DEVICE_BY_STEP[size_t(w)];
}
static __device__ const Levels DEVICE_LEVELS = LEVELS;
static_assert(RowFormat::BITS[2] == 6 && RowFormat::BITS[7] == 1);
__device__ __forceinline__ float log2_scale_of(int scale) {
    return float(scale) / 8 - 16;
}
__device__ __forceinline__ float scale_of(int scale) {
    return exp2f(log2_scale_of(scale));
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

// to (kept) ← a row, by `threads` threads of which this is number i. Returns how many.
template <class E>
__device__ __forceinline__ int unpack_row(float* to, const RowStore& store, const char* row, int i,
                                          int threads) {
    const RowFormat& format = store.format;
    int whole = int(format.count[0]), kept = 0;
    for (int w = 0; w < RowFormat::WIDTHS; w++) kept += int(format.count[w]);
    float rho = kept > whole ? scale_of(uint8_t(row[store.bytes - 1])) : 0;
    for (int j = i; j < kept; j += threads) {
        if (j < whole) {
            E element;  // rows of codes lie at any address
            memcpy(&element, row + size_t(j) * sizeof(E), sizeof(E));
            to[j] = to_float(element);
            continue;
        }
        CodePlace at(format, int(sizeof(E)), j);
        int bits = bits_of(at.w), first = at.n * bits, code = 0;
        for (int b = first / 8; b <= (first + bits - 1) / 8; b++)
            code |= int(uint8_t(row[at.byte + b])) << (8 * (b - first / 8));
        code = code >> (first % 8) & ((1 << bits) - 1);
        to[j] = rho * step_of(at.w) * float(DEVICE_LEVELS.of[at.w][code]);
    }
    return kept;
}

// The same for a row that is not there.
__device__ __forceinline__ int zero_row(float* to, const RowStore& store, int i, int threads) {
    int kept = 0;
    for (int w = 0; w < RowFormat::WIDTHS; w++) kept += int(store.format.count[w]);
    for (int j = i; j < kept; j += threads) to[j] = 0;
    return kept;
}

// ---- the encoder, by one warp ------------------------------------------------------------------

// One element at any address. By way of pack2's 32 bits: where a register of 16 is stored by bytes,
// ptxas 13.0 takes its lower one for the number converted to an integer (tools/sass.py looks for it).
template <class E>
__device__ __forceinline__ void store_bytes(char* to, float x) {
    uint32_t bits;
    if constexpr (sizeof(E) == 4) bits = __float_as_uint(x);
    else bits = pack2<E>(x, 0);
    for (size_t b = 0; b < sizeof(E); b++) to[b] = char(bits >> (8 * b));
}

// The code of the level nearest to x, which is in steps of width number w.
__device__ __forceinline__ int code_of(float x, int w) {
    constexpr int EDGE = Levels::HALVES / 2;
    float half = fmaxf(-float(EDGE), fminf(floorf(2 * x), float(EDGE - 1)));
    return DEVICE_LEVELS.nearest[w][int(half) + EDGE];
}

// Σ w (ẑ − z)² of a row under a scale, the same for all lanes.
__device__ __forceinline__ float cost_of(const float* c, const float* weight,
                                         const RowFormat& format, int scale) {
    float sum = 0, rho = scale_of(scale);
    int from = int(format.count[0]);
    for (int w = 1; w < RowFormat::WIDTHS; from += int(format.count[w]), w++)
        for (int j = int(threadIdx.x) % WARP; j < int(format.count[w]); j += WARP) {
            float step = rho * step_of(w), x = c[from + j];
            float error = step * float(DEVICE_LEVELS.of[w][code_of(x / step, w)]) - x;
            sum += (weight ? weight[from + j] : 1) * error * error;
        }
    return warp_sum(sum);
}

__device__ __forceinline__ int search_scale(const float* c, const float* weight,
                                            const RowFormat& format, int kept) {
    double square = 0, all = 0;  // as the twin's: few rows lie near a rounding's edge
    for (int j = int(format.count[0]) + int(threadIdx.x) % WARP; j < kept; j += WARP) {
        double w = weight ? double(weight[j]) : 1;
        square += w * double(c[j]) * double(c[j]), all += w;
    }
    for (int mask = WARP / 2; mask > 0; mask /= 2) {
        square += __shfl_xor_sync(~0u, square, mask);
        all += __shfl_xor_sync(~0u, all, mask);
    }
    double rms = sqrt(square / all), exponent = rms > 0 ? 255 : 0;
    if (rms > 0 && rms < 1e300) exponent = fmin(fmax(8 * log2(rms) + 128, 0.0), 255.0);
    int start = int(lround(exponent)), best = start;
    float least = INFINITY;
    auto offer = [&](int scale) {
        if (scale < 0 || scale > 255) return;
        float cost = cost_of(c, weight, format, scale);
        if (cost < least) least = cost, best = scale;
    };
    offer(start), offer(start - 8), offer(start - 4);
    for (int away = 4; away <= 16; away += 4) offer(start + away);
    for (int near = 2; near > 0; near--) {
        int middle = best;
        offer(middle - near), offer(middle + near);
    }
    return best;
}

// row ← c (kept) in the store's format; by one warp. A lane has whole groups of codes.
template <class E>
__device__ void pack_row(char* row, const float* c, const float* weight, const RowStore& store) {
    const RowFormat& format = store.format;
    int lane = int(threadIdx.x) % WARP, whole = int(format.count[0]), kept = 0;
    for (int w = 0; w < RowFormat::WIDTHS; w++) kept += int(format.count[w]);
    for (int j = lane; j < whole; j += WARP) store_bytes<E>(row + size_t(j) * sizeof(E), c[j]);
    if (kept == whole) return;
    int scale = search_scale(c, weight, format, kept);
    float rho = scale_of(scale);
    for (int j = whole + ROW_GROUP * lane; j < kept; j += ROW_GROUP * WARP) {
        CodePlace at(format, int(sizeof(E)), j);
        int bits = bits_of(at.w);
        uint64_t word = 0;
        for (int n = 0; n < ROW_GROUP; n++)
            word |= uint64_t(code_of(c[j + n] / (rho * step_of(at.w)), at.w)) << (n * bits);
        for (int b = 0; b < bits; b++) row[at.byte + b] = char(word >> (8 * b));
    }
    if (lane == 0) row[store.bytes - 1] = char(scale);
}

}  // namespace stief
