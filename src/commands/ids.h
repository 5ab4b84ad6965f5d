// Token ids written as numbers between spaces, commas or line ends.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer.h"

namespace stief {

// where: for the Error ("ids.txt: expected a token id, found 'x'").
std::vector<Token> parse_ids(std::string_view text, const std::string& where);

}  // namespace stief
