#include "backend/cpu/row_layout.h"

#include <algorithm>
#include <array>

#include "backend/levels.h"
#include "base/check.h"

namespace stief {

static constexpr uint32_t PIECE = 32;    // bytes of a row in a window or block

static const float* all_scales() {
    static const std::array<float, 257> table = [] {
        std::array<float, 257> rho;
        for (size_t s = 0; s < 256; s++) rho[s] = row_scale(uint8_t(s));
        rho[256] = 0x1p16f;
        return rho;
    }();
    return table.data();
}

// Levels as floats, by their codes and by the halves of a step that they are nearest to.
struct FloatLevels {
    float of[RowFormat::WIDTHS][256], nearest[RowFormat::WIDTHS][Levels::HALVES];

    FloatLevels() {
        for (size_t w = 0; w < RowFormat::WIDTHS; w++) {
            for (size_t i = 0; i < 256; i++) of[w][i] = float(LEVELS.of[w][i]);
            for (size_t i = 0; i < Levels::HALVES; i++) nearest[w][i] = of[w][LEVELS.nearest[w][i]];
        }
    }
};

static const FloatLevels& float_levels() {
    static const FloatLevels levels;
    return levels;
}

RowLayout::RowLayout(const RowFormat& form, DType type)
    : format(form), dtype(type), bytes(form.bytes(type)), kept(form.kept()),
      whole(form.count[0]), codes(form.codes()), groups(codes / ROW_GROUP),
      nearest(float_levels().nearest[0]), nearest_code(LEVELS.nearest[0]), rho(all_scales()) {
    check(kept <= MOST, "a row of %d coordinates; at most %d can be kept", kept, MOST);
    size_t filled = size_t(codes + FILL - 1) / FILL * FILL;
    coordinates.assign(4 * filled, 1.0f);
    step = coordinates.data(), cell = step + filled, halves = cell + filled, middle = halves + filled;
    std::fill_n(coordinates.data() + 3 * filled, filled, float(Levels::HALVES / 2));
    uint32_t offset = uint32_t(size_t(whole) * size_of(dtype));
    size_t i = 0;
    for (size_t w = 1; w < RowFormat::WIDTHS; w++)
        for (int n = 0; n < format.count[w]; n += ROW_GROUP) {
            int bits = RowFormat::BITS[w];
            all_groups.push_back({offset, bits, RowFormat::STEP[w], RowFormat::DISTORTION[w],
                                  float_levels().of[w]});
            offset += uint32_t(bits);
            for (int j = 0; j < ROW_GROUP; j++, i++) {
                coordinates[i] = RowFormat::STEP[w];
                coordinates[filled + i] = RowFormat::CELL[w];
                coordinates[2 * filled + i] = 2 / RowFormat::CELL[w];
                coordinates[3 * filled + i] = float(Levels::HALVES * w + Levels::HALVES / 2);
            }
        }
    group = all_groups.data();
    close = bytes <= PIECE;
    for (size_t byte = 0; byte < 64; byte++) {
        size_t row = byte / 16;
        lanes[byte] = uint8_t(row / 2 * 64 + row % 2 * (close ? bytes : PIECE));
    }
    make_windows();
    make_blocks();
    make_widths();
    make_couples();
}

// The fewest windows from left to right; the scale counts as one byte of codes.
void RowLayout::make_windows() {
    auto window_to = [&](uint32_t first, uint32_t end) -> Window& {
        int next = int(all_sixteens.size());
        if (all_windows.empty() || end > all_windows.back().offset + PIECE)
            all_windows.push_back({first, next, next});
        return all_windows.back();
    };
    for (int g = 0; g < groups; g += 2) {
        const Group& last = group[std::min(g + 1, groups - 1)];
        Window& in = window_to(group[g].offset, last.offset + uint32_t(last.bits));
        in.end++;
        Sixteen table = {};
        for (size_t byte = 0; byte < size_t(g + 1 < groups ? 16 : 8); byte++) {
            const Group& from = group[g + int(byte / 8)];
            size_t b = size_t(from.bits), i = byte % 8;
            table.spread[byte] = uint8_t(from.offset - in.offset + std::min(i, b - 1));
            table.shift[byte] = uint8_t(i * b);
            table.mask[byte] = uint8_t((1 << b) - 1);
            table.base[byte] = uint8_t(Levels::biased_at(int(b)));
            if (b <= 6) table.lookup |= uint64_t(0x0001000100010001) << byte;
        }
        all_sixteens.push_back(table);
    }
    scale_at = 0;
    if (groups) scale_at = int(bytes - 1 - window_to(uint32_t(bytes - 1), uint32_t(bytes)).offset);
    windows = int(all_windows.size());
    window = all_windows.data(), sixteen = all_sixteens.data();
}

// 64 bits of a block are two coordinates of four rows: 16 bits of each row from the byte at which the
// first code begins, which hold both codes: of b bits, the first begins at an even bit, and 6 + 2 · 5
// or 4 + 2 · 6 are 16.
void RowLayout::make_blocks() {
    for (int g = 0; g < groups; g += 2) {
        int last = std::min(g + 1, groups - 1);
        uint32_t end = group[last].offset + uint32_t(group[last].bits);
        if (all_blocks.empty() || all_blocks.back().sixteens == 2 ||
            end > all_blocks.back().offset + PIECE) {
            all_blocks.push_back({});
            all_blocks.back().offset = group[g].offset, all_blocks.back().first = g * ROW_GROUP;
        }
        Block& in = all_blocks.back();
        size_t n = size_t(in.sixteens++);
        for (size_t byte = 0; byte < 64; byte++) {
            size_t i = byte / 8 * 2, row = byte / 2 % 4;
            int at = g + int(i / ROW_GROUP);
            if (at >= groups) continue;             // all zero: the sums are not stored
            size_t b = size_t(group[at].bits), bit = i % ROW_GROUP * b;
            // a second byte that no code needs may lie behind the piece
            size_t second = bit % 8 + 2 * b > 8 ? byte % 2 : 0;
            in.spread[n][byte] = uint8_t(lanes[16 * row] + group[at].offset - in.offset + bit / 8 + second);
            // of the result: 32 bits a coordinate, a byte a row
            size_t which = byte / 4 % 2, of_row = byte % 4;
            in.shift[n][byte] = uint8_t(16 * of_row + bit % 8 + which * b);
            in.mask[n][byte] = uint8_t((1 << b) - 1);
            in.base[n][byte] = uint8_t(Levels::biased_at(int(b)));
            if (b <= 6) in.lookup[n] |= uint64_t(1) << byte;
        }
    }
    blocks = int(all_blocks.size());
    block = all_blocks.data();
}

// Four registers of 32-bit numbers packed twice: a byte's lane of 128 bits has four of each register.
void RowLayout::make_widths() {
    all_widths.resize(size_t(codes + 63) / 64);
    for (size_t at = 0; at < all_widths.size() * 64; at++) {
        size_t byte = at % 64, i = at / 64 * 64 + byte % 16 / 4 * 16 + byte / 16 * 4 + byte % 4;
        if (i >= size_t(codes)) continue;
        size_t w = 1;
        while (RowFormat::BITS[w] != group[i / ROW_GROUP].bits) w++;
        Widths& in = all_widths[at / 64];
        int n = 0;
        while (n < in.count && in.one[n].size != LEVELS.size[w]) n++;
        if (n == in.count) in.one[in.count++] = {LEVELS.size[w], 0};
        in.one[n].mask |= uint64_t(1) << byte;
        if (w == 1) in.eight |= uint64_t(1) << byte;
    }
    widths = all_widths.data();
}

void RowLayout::make_couples() {
    auto tables_of = [](int bits) { return bits == 8 ? 0 : bits > 4 ? 1 << (bits - 4) : 1; };
    for (int g = 0, n; g < groups; g += n) {
        bool two = group[g].bits < 8 && g + 1 < groups;
        n = two ? 2 : 1;
        Couple to = {};
        to.offset = group[g].offset, to.first = g * ROW_GROUP, to.codes = n * ROW_GROUP;
        to.tables = tables_of(group[g].bits);
        std::fill_n(to.spread, 32, N);
        for (int lane = 0; lane < n; lane++) {
            const Group& from = group[g + lane];
            size_t begin = size_t(lane) * 8, b = size_t(from.bits);
            for (size_t i = 0; i < 8; i++) {
                size_t bit = i * b % 8, byte = from.offset - to.offset + i * b / 8;
                // a second byte that no code needs may be one behind the 16
                to.spread[2 * (begin + i)] = uint8_t(byte);
                to.spread[2 * (begin + i) + 1] = bit + b > 8 ? uint8_t(byte + 1) : N;
                to.up[begin + i] = uint16_t(1 << (16 - b - bit));
                to.down[begin + i] = uint16_t(1 << b);
                to.least[begin + i] = int16_t(from.level[0]);
            }
            for (int k = 0; k < tables_of(from.bits); k++)
                for (int i = 0; i < std::min(16, 1 << b); i++) {
                    float before = k ? from.level[16 * (k - 1) + i] : from.level[0];
                    to.level[k][2 * begin + size_t(i)] = uint8_t(int(from.level[16 * k + i] - before));
                }
        }
        all_couples.push_back(to);
    }
    couples = int(all_couples.size());
    couple = all_couples.data();
}

}  // namespace stief
