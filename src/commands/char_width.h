// Columns that a character takes on a terminal: 0 for what combines with the one before, 2 for the
// scripts of East Asia and for emoji, 1 for the rest. Unicode's General_Category (Mn, Me, Cf) and
// East_Asian_Width, in a table that tools/unicode_table.py writes.
#pragma once

namespace stief {

int char_width(char32_t c);

// C0, C1 and DEL: what a terminal would obey instead of showing.
inline bool is_control(char32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0);
}

}  // namespace stief
