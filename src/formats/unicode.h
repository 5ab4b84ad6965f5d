// Characters of a text and the three classes by which tokenizers split: \p{L}, \p{N}, \s.
// A byte that begins no character is one of its own, of no class: any text can be walked through.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace stief {

enum class CharClass : uint8_t { Other, Letter, Number, Space };

struct Character {
    uint32_t code;      // INVALID for a byte that begins no character
    uint32_t length;    // bytes, 1 … 4
    CharClass kind;

    static constexpr uint32_t INVALID = 0xffffffffu;
};

CharClass class_of(uint32_t code);

// The character at text[at], at < text.size().
Character character_at(std::string_view text, size_t at);

// The end of the run of characters of one class that begins at text[at], at most limit of them.
size_t skip(std::string_view text, size_t at, CharClass kind, size_t limit = size_t(-1));

// How many of the last bytes begin a character that the next bytes could complete: 0 … 3.
size_t unfinished_tail(std::string_view text);

// Without what Python's str.strip() removes at both ends: chat templates are written for it.
std::string_view strip(std::string_view text);

}  // namespace stief
