#include "backend/row_format.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/levels.h"
#include "base/bf16.h"

namespace stief {

RowFormat RowFormat::whole(int r) {
    RowFormat format;
    format.count[0] = uint16_t(r);
    return format;
}

int RowFormat::kept() const {
    int sum = 0;
    for (uint16_t n : count) sum += n;
    return sum;
}

int RowFormat::codes() const {
    return kept() - count[0];
}

size_t RowFormat::bytes(DType dtype) const {
    size_t bits = 0;
    for (size_t w = 1; w < WIDTHS; w++) bits += size_t(count[w]) * size_t(BITS[w]);
    return count[0] * size_of(dtype) + bits / 8 + (codes() > 0);
}

double RowFormat::bits_per_element(DType dtype, int d) const {
    return 8 * double(bytes(dtype)) / d;
}

float row_scale(uint8_t scale) {
    return float(std::exp2((double(scale) - 128) / 8));
}

namespace {

// The code of the level nearest to x, c / (ρ δ), of width number w.
int code_of(float x, size_t w) {
    constexpr float edge = Levels::HALVES / 2;
    // fmax and fmin: NaN, of damaged weights, takes some code
    float half = std::fmax(-edge, std::fmin(std::floor(2 * x), edge - 1));
    return LEVELS.nearest[w][int(half + edge)];
}

// What a scale costs: Σ w (ẑ − z)².
float cost_of(const float* c, const float* weight, const RowFormat& format, uint8_t scale) {
    float sum = 0, rho = row_scale(scale);
    size_t i = format.count[0];
    for (size_t w = 1; w < RowFormat::WIDTHS; w++)
        for (int n = 0; n < format.count[w]; n++, i++) {
            float step = rho * RowFormat::CELL[w];
            float error = step * float(LEVELS.of[w][code_of(c[i] / step, w)]) - c[i];
            sum += (weight ? weight[i] : 1) * error * error;
        }
    return sum;
}

// The scale nearest to the root of the codes' weighted mean square, then the best of some larger
// and smaller ones (eighths of an octave), then of its neighbours: a row's few outliers want a
// larger one than its mean, and clipping all of them a smaller one.
uint8_t search_scale(const float* c, const float* weight, const RowFormat& format) {
    double square = 0, all = 0;
    for (size_t i = format.count[0]; i < size_t(format.kept()); i++) {
        double w = weight ? double(weight[i]) : 1;
        square += w * double(c[i]) * double(c[i]), all += w;
    }
    double rms = std::sqrt(square / all);
    double exponent = rms > 0 && std::isfinite(rms)
                          ? std::clamp(8 * std::log2(rms) + 128, 0.0, 255.0)
                          : (rms > 0 ? 255 : 0);
    int start = int(std::lround(exponent)), best = start;
    float least = std::numeric_limits<float>::infinity();
    auto offer = [&](int scale) {
        if (scale < 0 || scale > 255) return;
        float cost = cost_of(c, weight, format, uint8_t(scale));
        if (cost < least) least = cost, best = scale;
    };
    for (int away : {0, -8, -4, 4, 8, 12, 16}) offer(start + away);
    for (int near : {2, 1}) {
        int middle = best;
        offer(middle - near), offer(middle + near);
    }
    return uint8_t(best);
}

void narrow(void* to, float x, DType dtype) {
    if (dtype == DType::F32) std::memcpy(to, &x, 4);
    if (dtype == DType::F32) return;
    uint16_t half = dtype == DType::F16 ? uint16_t(to_f16(x).bits) : uint16_t(to_bf16(x).bits);
    std::memcpy(to, &half, 2);
}

}  // namespace

void pack_row(void* row, const float* c, const float* weight, const RowFormat& format,
              DType dtype) {
    uint8_t* to = static_cast<uint8_t*>(row);
    for (size_t i = 0; i < format.count[0]; i++, to += size_of(dtype)) narrow(to, c[i], dtype);
    if (format.codes() == 0) return;
    uint8_t scale = search_scale(c, weight, format);
    float rho = row_scale(scale);
    size_t i = format.count[0];
    for (size_t w = 1; w < RowFormat::WIDTHS; w++)
        for (int group = 0; group < format.count[w] / ROW_GROUP; group++) {
            int bits = RowFormat::BITS[w];
            uint64_t word = 0;
            for (int n = 0; n < ROW_GROUP; n++, i++)
                word |= uint64_t(code_of(c[i] / (rho * RowFormat::CELL[w]), w)) << (n * bits);
            std::memcpy(to, &word, size_t(bits));  // little-endian, as all of the project's files
            to += bits;
        }
    *to = scale;
}

void unpack_row(float* c, const void* row, const RowFormat& format, DType dtype) {
    const uint8_t* from = static_cast<const uint8_t*>(row);
    for (size_t i = 0; i < format.count[0]; i++, from += size_of(dtype))
        if (dtype == DType::F32) {
            std::memcpy(c + i, from, 4);
        } else {
            uint16_t half;
            std::memcpy(&half, from, 2);
            c[i] = dtype == DType::F16 ? to_float(f16{half}) : to_float(bf16{half});
        }
    if (format.codes() == 0) return;
    float rho = row_scale(static_cast<const uint8_t*>(row)[format.bytes(dtype) - 1]);
    size_t i = format.count[0];
    for (size_t w = 1; w < RowFormat::WIDTHS; w++)
        for (int group = 0; group < format.count[w] / ROW_GROUP; group++) {
            int bits = RowFormat::BITS[w];
            uint64_t word = 0;
            std::memcpy(&word, from, size_t(bits));
            for (int n = 0; n < ROW_GROUP; n++, i++, word >>= bits)
                c[i] = rho * RowFormat::STEP[w] * float(LEVELS.of[w][word & ((1u << bits) - 1)]);
            from += bits;
        }
}

}  // namespace stief
