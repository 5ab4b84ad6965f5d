// Classes by binary search over the ranges of one sorted table, with an array in front for ASCII.
#include "formats/unicode.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <string>

#include "base/utf8.h"

namespace stief {

namespace {

struct Range {
    uint32_t first, last;
    CharClass kind;
};

constexpr CharClass L = CharClass::Letter, N = CharClass::Number, S = CharClass::Space;
constexpr Range RANGES[] = {
#include "formats/unicode_table.inc"
};

constexpr CharClass search(uint32_t code) {
    auto after = std::upper_bound(std::begin(RANGES), std::end(RANGES), code,
                                  [](uint32_t c, const Range& range) { return c < range.first; });
    if (after == std::begin(RANGES)) return CharClass::Other;
    const Range& range = *std::prev(after);
    return code <= range.last ? range.kind : CharClass::Other;
}

constexpr std::array<CharClass, 128> ASCII = [] {
    std::array<CharClass, 128> classes{};
    for (uint32_t c = 0; c < 128; c++) classes[c] = search(c);
    return classes;
}();

// str.isspace() is White_Space and the four information separators.
bool is_stripped(const Character& c) {
    return c.kind == CharClass::Space || (c.code >= 0x1c && c.code <= 0x1f);
}

}  // namespace

CharClass class_of(uint32_t code) {
    return code < 128 ? ASCII[code] : search(code);
}

Character character_at(std::string_view text, size_t at) {
    uint8_t first = uint8_t(text[at]);
    if (first < 0x80) return {first, 1, ASCII[first]};
    uint32_t length = uint32_t(utf8_length(text, at));
    if (length == 0) return {Character::INVALID, 1, CharClass::Other};
    uint32_t code = first & (0x7fu >> length);
    for (uint32_t k = 1; k < length; k++) code = code << 6 | (uint8_t(text[at + k]) & 0x3fu);
    return {code, length, search(code)};
}

size_t skip(std::string_view text, size_t at, CharClass kind, size_t limit) {
    for (; limit > 0 && at < text.size(); limit--) {
        Character c = character_at(text, at);
        if (c.kind != kind) break;
        at += c.length;
    }
    return at;
}

size_t unfinished_tail(std::string_view text) {
    for (size_t n = 1; n <= 3 && n <= text.size(); n++) {
        std::string start(text.substr(text.size() - n));
        uint8_t first = uint8_t(start[0]);
        if ((first & 0xc0) == 0x80) continue;
        if (first < 0xc2 || first > 0xf4) return 0;
        size_t whole = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
        if (n >= whole) return 0;
        // The second byte decides (longer than needed, surrogate, too large): the rest may be any.
        bool narrow = first == 0xe0 || first == 0xf0;
        if (n == 1) start += narrow ? '\xa0' : '\x80';
        start.append(whole - start.size(), '\x80');
        return utf8_length(start, 0) ? n : 0;
    }
    return 0;
}

std::string_view strip(std::string_view text) {
    while (!text.empty()) {
        Character c = character_at(text, 0);
        if (!is_stripped(c)) break;
        text.remove_prefix(c.length);
    }
    while (!text.empty()) {
        size_t last = text.size() - 1;
        while (last > 0 && text.size() - last < 4 && (uint8_t(text[last]) & 0xc0) == 0x80) last--;
        Character c = character_at(text, last);
        if (last + c.length != text.size() || !is_stripped(c)) break;
        text.remove_suffix(c.length);
    }
    return text;
}

}  // namespace stief
