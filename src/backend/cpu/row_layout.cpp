#include "backend/cpu/row_layout.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "backend/levels.h"
#include "base/check.h"

namespace stief {

static constexpr uint64_t LOWER_BYTES = 0x5555555555555555;  // of words

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
            all_groups.push_back({offset, bits, RowFormat::STEP[w], float_levels().of[w]});
            offset += uint32_t(bits);
            for (int j = 0; j < ROW_GROUP; j++, i++) {
                coordinates[i] = RowFormat::STEP[w];
                coordinates[filled + i] = RowFormat::CELL[w];
                coordinates[2 * filled + i] = 2 / RowFormat::CELL[w];
                coordinates[3 * filled + i] = float(Levels::HALVES * w + Levels::HALVES / 2);
            }
        }
    group = all_groups.data();
    make_windows();
    make_blocks();
    make_couples();
}

// The fewest windows from left to right; the scale counts as one byte of a group.
void RowLayout::make_windows() {
    constexpr uint32_t SIZE = 16;
    scale_at = 0;
    for (int g = 0; g <= groups && groups > 0; g++) {
        bool scale = g == groups;
        uint32_t first = scale ? uint32_t(bytes - 1) : group[g].offset;
        uint32_t end = scale ? uint32_t(bytes) : first + uint32_t(group[g].bits);
        if (all_windows.empty() || end > all_windows.back().offset + SIZE)
            all_windows.push_back({first, g, g});
        Window& in = all_windows.back();
        if (scale) {
            scale_at = int(first - in.offset);
            break;
        }
        in.end = g + 1;
        WindowGroup table;
        for (size_t byte = 0; byte < SIZE; byte++) {
            size_t code = byte / 2, b = size_t(group[g].bits), from = byte % 8;
            table.spread[byte] = from < b ? uint8_t(first - in.offset + from) : N;
            table.shift[byte] = uint8_t(code * b);
            table.mask[byte] = byte % 2 ? 0 : uint8_t((1 << b) - 1);
            table.base[byte] = byte % 2 ? 0 : uint8_t(Levels::biased_at(int(b)));
        }
        table.lookup = group[g].bits > 6 ? 0 : LOWER_BYTES;
        window_groups.push_back(table);
    }
    windows = int(all_windows.size());
    window = all_windows.data(), in_window = window_groups.data();
}

// 64 bits of a block are two coordinates of two rows: 32 bits of each from the byte at which the
// first code begins, which hold both codes: 7 + 2 · 8 bits at most.
void RowLayout::make_blocks() {
    constexpr uint32_t SIZE = 32;
    for (int g = 0; g < groups; g += 2) {
        int last = std::min(g + 1, groups - 1);
        uint32_t end = group[last].offset + uint32_t(group[last].bits);
        if (all_blocks.empty() || all_blocks.back().pairs == 4 ||
            end > all_blocks.back().offset + SIZE) {
            all_blocks.push_back({});
            all_blocks.back().offset = group[g].offset, all_blocks.back().first = g * ROW_GROUP;
        }
        Block& in = all_blocks.back();
        size_t pair = size_t(in.pairs++);
        for (size_t byte = 0; byte < 64; byte++) {
            size_t i = byte / 8 * 2, code = i % ROW_GROUP, second = byte / 4 % 2;
            int at = g + int(i / ROW_GROUP);
            if (at >= groups) continue;             // all zero: masked away
            size_t b = size_t(group[at].bits), bit = code * b;
            size_t from = group[at].offset - in.offset + bit / 8 + byte % 4;
            in.spread[pair][byte] = uint8_t(std::min<size_t>(from, SIZE - 1) + SIZE * second);
            // byte 0 and 2: the first coordinate's code in either row; 4 and 6: the second's
            size_t row = byte / 2 % 2, which = byte / 4 % 2;
            in.shift[pair][byte] = uint8_t(32 * row + bit % 8 + which * b);
            in.mask[pair][byte] = byte % 2 ? 0 : uint8_t((1 << b) - 1);
            in.base[pair][byte] = byte % 2 ? 0 : uint8_t(Levels::biased_at(int(b)));
            if (b <= 6) in.lookup[pair] |= LOWER_BYTES & uint64_t(1) << byte;
        }
    }
    blocks = int(all_blocks.size());
    block = all_blocks.data();
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
