// UTF-8 as RFC 3629, section 4 has it: no surrogates, no longer form than needed, up to U+10FFFF.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace stief {

// Bytes of the character that begins at text[i]: 1 … 4, or 0 where none does.
inline size_t utf8_length(std::string_view text, size_t i) {
    auto byte = [&](size_t k) { return i + k < text.size() ? uint8_t(text[i + k]) : uint8_t(0); };
    auto follows = [&](size_t k) { return (byte(k) & 0xc0) == 0x80; };
    uint8_t first = byte(0), second = byte(1);
    if (first < 0x80) return i < text.size() ? 1 : 0;
    if (first < 0xc2) return 0;
    if (first < 0xe0) return follows(1) ? 2 : 0;
    if (first < 0xf0) {
        if (first == 0xe0 && second < 0xa0) return 0;   // longer than needed
        if (first == 0xed && second > 0x9f) return 0;   // a surrogate
        return follows(1) && follows(2) ? 3 : 0;
    }
    if (first > 0xf4) return 0;
    if (first == 0xf0 && second < 0x90) return 0;       // longer than needed
    if (first == 0xf4 && second > 0x8f) return 0;       // beyond U+10FFFF
    return follows(1) && follows(2) && follows(3) ? 4 : 0;
}

// Without the byte order mark that some editors put in front of UTF-8.
inline std::string_view without_bom(std::string_view text) {
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
    return text;
}

inline void append_utf8(std::string& out, uint32_t c) {
    if (c < 0x80) {
        out += char(c);
    } else if (c < 0x800) {
        out += {char(0xc0 | c >> 6), char(0x80 | (c & 0x3f))};
    } else if (c < 0x10000) {
        out += {char(0xe0 | c >> 12), char(0x80 | (c >> 6 & 0x3f)), char(0x80 | (c & 0x3f))};
    } else {
        out += {char(0xf0 | c >> 18), char(0x80 | (c >> 12 & 0x3f)), char(0x80 | (c >> 6 & 0x3f)),
                char(0x80 | (c & 0x3f))};
    }
}

}  // namespace stief
