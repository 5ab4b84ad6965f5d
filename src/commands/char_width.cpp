#include "commands/char_width.h"

#include <algorithm>
#include <iterator>

namespace stief {

struct Range {
    char32_t first, last;
    int columns;
};

// What is in none of these takes one column.
static constexpr Range RANGES[] = {
#include "commands/char_width_table.inc"
};

int char_width(char32_t c) {
    if (c < RANGES[0].first) return 1;
    const Range* after = std::upper_bound(std::begin(RANGES), std::end(RANGES), c,
                                          [](char32_t x, const Range& r) { return x < r.first; });
    const Range& range = *std::prev(after);
    return c <= range.last ? range.columns : 1;
}

}  // namespace stief
