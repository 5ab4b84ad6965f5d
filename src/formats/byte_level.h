// How tokenizer.json spells bytes as characters (GPT-2's encoder.py): a byte that is a visible
// character of Latin-1 is that character; the other 68 are U+0100, U+0101, … in their order, so
// that "Ġthe" is " the".
#pragma once
#include <string>
#include <string_view>

namespace stief {

// Appends the bytes that are spelt. False where a character is not of this alphabet.
bool append_bytes(std::string& bytes, std::string_view spelling);

}  // namespace stief
