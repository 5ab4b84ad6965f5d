#include "formats/byte_level.h"

#include <array>
#include <cstdint>

#include "formats/unicode.h"

namespace stief {

static constexpr uint32_t ALPHABET_END = 256 + 68;

// code point → byte, −1 where it spells none.
static constexpr std::array<int16_t, ALPHABET_END> BYTE_OF = [] {
    std::array<int16_t, ALPHABET_END> byte_of{};
    byte_of.fill(-1);
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; b++) {
        bool visible = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xff && b != 0xad);
        byte_of[visible ? b : next++] = int16_t(b);
    }
    return byte_of;
}();

bool append_bytes(std::string& bytes, std::string_view spelling) {
    for (size_t i = 0; i < spelling.size();) {
        Character c = character_at(spelling, i);
        if (c.code >= ALPHABET_END || BYTE_OF[c.code] < 0) return false;
        bytes += char(BYTE_OF[c.code]);
        i += c.length;
    }
    return true;
}

}  // namespace stief
