#include "commands/ids.h"

#include <charconv>

#include "base/check.h"

namespace stief {

std::vector<Token> parse_ids(std::string_view text, const std::string& where) {
    constexpr std::string_view between = " ,\t\r\n";
    std::vector<Token> ids;
    for (size_t at = text.find_first_not_of(between); at != text.npos;
         at = text.find_first_not_of(between, at)) {
        size_t end = std::min(text.find_first_of(between, at), text.size());
        std::string word(text.substr(at, end - at));
        Token id = -1;
        auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), id);
        check(error == std::errc() && *stop == 0 && id >= 0,
              "%s: expected a token id, found '%.40s'", where.c_str(), word.c_str());
        ids.push_back(id);
        at = end;
    }
    return ids;
}

}  // namespace stief
