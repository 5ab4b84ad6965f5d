// A strict JSON reader (RFC 8259) and what is needed to write JSON. The reader takes a whole
// document, refuses anything else (comments, trailing commas, duplicate keys, invalid UTF-8, lone
// surrogates) and never allocates more than a constant times the text it was given.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stief {

struct Json {
    enum Kind : uint8_t { Null, Bool, Number, String, Array, Object };
    Kind kind = Null;
    bool boolean = false;
    std::string text;                                     // String: decoded. Number: as written
    std::vector<Json> items;                              // Array
    struct Member;
    std::vector<Member> members;                          // Object: {key, value}, as in the file

    // where: the file's name, for messages: "config.json:12:5: expected ',' or '}', found 'x'".
    static Json parse(std::string_view text, const std::string& where, int max_depth = 64);

    const Json* find(std::string_view key) const;         // the member; absent or null: nullptr

    // The value as a C++ type; where: a path such as "config.json: rope_scaling: factor" for the
    // Error "… expected a number, found a string". integer() refuses 1.0 and what is out of range.
    double number(const std::string& where) const;
    int64_t integer(const std::string& where, int64_t low, int64_t high) const;
    bool flag(const std::string& where) const;
    const std::string& string(const std::string& where) const;
};

struct Json::Member {
    std::string key;
    Json value;
};

std::string quote(std::string_view text);                 // "…", with escapes; not UTF-8 → U+FFFD
const char* name_of(Json::Kind kind);                     // "a number", "an object", …

// A name from a file, fit for a message: as it is, or quoted where it holds anything that would
// disturb a terminal, and cut where it is long.
std::string printable(std::string_view name);

}  // namespace stief
