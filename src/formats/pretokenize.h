// Text is cut into pieces before byte pairs are merged, within a piece only. A splitter says where
// the piece that begins at text[start] ends; start < text.size(). Every text is cut completely, in
// linear time: no character is looked at more than three times.
//   llama3   the pieces that one pattern matches, one after another
//   gpt2     every digit is a piece (SmolLM); what is between digits is cut by GPT-2's pattern
#pragma once
#include <cstddef>
#include <string_view>

namespace stief {

using Splitter = size_t (*)(std::string_view text, size_t start);

constexpr std::string_view LLAMA3_PATTERN =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

size_t llama3_piece_end(std::string_view text, size_t start);
size_t gpt2_piece_end(std::string_view text, size_t start);

}  // namespace stief
