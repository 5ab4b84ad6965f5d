// Llama 3's split pattern. Text is cut into the pieces that the pattern matches one after another;
// byte pairs are merged within a piece only.
#pragma once
#include <cstddef>
#include <string_view>

namespace stief {

constexpr std::string_view SPLIT_PATTERN =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Where the piece that begins at text[start] ends; start < text.size(). Every text is cut
// completely, in linear time: no character is looked at more than three times.
size_t piece_end(std::string_view text, size_t start);

}  // namespace stief
