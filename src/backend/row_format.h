// How the cache stores a row: one token's latent coordinates of one kv head's keys or values, the
// most important first, each with as many bits as it is worth.
//
//     row = whole elements | groups of 8 codes, widest first | scale
//
// The first count[0] coordinates are elements of the cache's dtype; the next ones are codes of 8,
// 6, 5, 4, 3, 2 and 1 bits, in groups of eight: a group of b bits is b bytes, code i at its bits
// i·b … i·b + b − 1, the lowest first. What is not counted is not stored and reads as zero. With
// any code at all, the row's last byte is its scale. There is no padding: rows lie at multiples of
// bytes().
//
// A code stands for an integer level of 8 bits (levels.h):
//     c_i = ρ Δ_b L_b(code),   ρ = 2^((scale − 128) / 8)
// It is that of the level nearest to c_i / (ρ δ_b), L_b and δ_b those that quantise a unit Gaussian
// best: coordinates have unit spread, their own spread is folded into the basis. The encoder searches
// the scale.
//
// Least squares shrink what they quantise: E[ĉ c] = 1 − D_b with the distortion D_b. As attention sums
// over tokens, and the model over layers, what is random in the errors averages out and the shrinking
// does not. So on the way out a level counts more, Δ_b = δ_b (1 + RESTORED D_b / (1 − D_b)); with 1
// nothing would be shrunk, with 0 the error of each coordinate alone would be least.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "base/tensor.h"

namespace stief {

constexpr int ROW_GROUP = 8;     // codes of one width come in multiples
constexpr int MOST_KEPT = 2048;  // coordinates of a row that has codes
constexpr int ROW_SLACK = 64;    // bytes that a kernel may read beyond the last row of a store

struct RowFormat {
    static constexpr int WIDTHS = 8;
    static constexpr std::array<int, WIDTHS> BITS = {16, 8, 6, 5, 4, 3, 2, 1};  // 16: an element
    // of unit spread: δ_b and D_b (levels.h); 0 for elements
    static constexpr std::array<float, WIDTHS> CELL = {
        0, 0.03077f, 0.0352311f, 0.0272935f, 0.0262219f, 0.018888f, 0.0137337f, 0.0064346f};
    static constexpr std::array<float, WIDTHS> DISTORTION = {
        0, 0.000088f, 0.00065669f, 0.0025207f, 0.0095062f, 0.034549f, 0.11748f, 0.36338f};
    static constexpr float RESTORED = 0.6f;
    static constexpr std::array<float, WIDTHS> STEP = [] {  // Δ_b
        std::array<float, WIDTHS> step{};
        for (size_t w = 1; w < WIDTHS; w++)
            step[w] = CELL[w] * (1 + RESTORED * DISTORTION[w] / (1 - DISTORTION[w]));
        return step;
    }();

    std::array<uint16_t, WIDTHS>
        count{};  // coordinates at each width; multiples of ROW_GROUP but [0]

    static RowFormat whole(int r);  // r elements and nothing else
    bool operator==(const RowFormat&) const = default;
    bool is_whole() const { return codes() == 0; }
    constexpr bool keeps_all(int d) const { return count[0] == d; }  // d elements: a row as it came
    int kept() const;                 // r: coordinates that are stored
    int codes() const;                // those of them that are codes
    size_t bytes(DType dtype) const;  // of a row, its scale included
    // Bits a coordinate of d, everything included: 8 bytes / d.
    double bits_per_element(DType dtype, int d) const;
};

// ρ of a row's scale.
float row_scale(uint8_t scale);

// The meaning of a format, one row at a time; every backend's own pack and unpack agree with it.
void pack_row(void* row,            // (format.bytes(dtype))
              const float* c,       // (kept)
              const float* weight,  // (kept)  what an error in each costs, for the search; null: 1
              const RowFormat& format, DType dtype);
void unpack_row(float* c,  // (kept)
                const void* row, const RowFormat& format, DType dtype);

}  // namespace stief
