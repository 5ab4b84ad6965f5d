// The levels that codes stand for: of b bits, the 2^b ones on a grid of signed 8-bit integers with
// which a unit Gaussian is quantised best (Lloyd 1957, Max 1960: there without a grid). Inner
// products of codes are so inner products of integers, whatever their widths.
//
// Made by dynamic programming over the grid, exact for each cell δ_b (row_format.h), over cells near
// the one that puts the outermost of Max's levels on the grid's edge. Mean squared error, and Max's:
//     bits    1        2        3         4          5          6
//     grid    0.36338  0.11748  0.034549  0.0095062  0.0025207  0.00065669
//     Max     0.3634   0.1175   0.03454   0.009497   0.002499   0.0006442
// Of 8 bits all of the grid's integers are levels: it is linear, with zero among them.
#pragma once
#include <cstdint>

#include "backend/row_format.h"

namespace stief {

struct Levels {
    static constexpr int HALVES = 512;       // halves of a step, −256 … 255 of them
    static constexpr int BIAS = 128;

    // 2^b of them for each width, ascending; then zeros
    int8_t of[RowFormat::WIDTHS][256] = {};
    // code of the nearest level by ⌊2x⌋ + 256, x in steps; two as near: the upper one
    uint8_t nearest[RowFormat::WIDTHS][HALVES] = {};
    // and that level itself; behind the last the same once more, and padding
    int8_t rounded[RowFormat::WIDTHS][HALVES + 4] = {};
    // sizes of the nearest levels by ⌊2 |x|⌋
    uint8_t size[RowFormat::WIDTHS][256] = {};
    // level + BIAS of each code of 6 bits, then of 5, …, 1: of b bits from biased_at(b) on
    uint8_t biased[128] = {};

    static constexpr int biased_at(int bits) { return bits > 6 ? 0 : 128 - (2 << bits); }

    constexpr Levels() {
        constexpr int8_t upper[6][32] = {
            {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
             33, 35, 38, 41, 44, 47, 50, 53, 57, 61, 65, 70, 76, 83, 92, 106},
            {2, 7, 12, 17, 22, 27, 32, 38, 44, 50, 57, 65, 74, 85, 99, 120},
            {5, 15, 25, 36, 48, 62, 79, 104},
            {13, 40, 71, 114},
            {33, 110},
            {124}};
        for (int i = 0; i < 256; i++) of[1][i] = int8_t(i - 128);
        for (int w = 2; w < RowFormat::WIDTHS; w++) {
            int bits = RowFormat::BITS[w], half = 1 << (bits - 1);
            for (int i = 0; i < half; i++) {
                of[w][half + i] = upper[w - 2][i];
                of[w][half - 1 - i] = int8_t(-upper[w - 2][i]);
            }
            for (int i = 0; i < 2 * half; i++)
                biased[biased_at(bits) + i] = uint8_t(of[w][i] + BIAS);
        }
        for (int w = 1; w < RowFormat::WIDTHS; w++) {
            for (int i = 0, code = 0; i < HALVES; i++) {
                int last = (1 << RowFormat::BITS[w]) - 1;
                while (code < last && of[w][code] + of[w][code + 1] <= i - HALVES / 2) code++;
                nearest[w][i] = uint8_t(code);
                rounded[w][i] = rounded[w][i + 1] = of[w][code];
            }
            for (int i = 0; i < 256; i++) size[w][i] = uint8_t(rounded[w][HALVES / 2 + i]);
        }
    }
};

inline constexpr Levels LEVELS;

}  // namespace stief
