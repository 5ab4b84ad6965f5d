// A recursive descent over RFC 8259. Three decisions keep it linear and small on hostile text:
// UTF-8 is checked once, before anything else; the children of a container wait on one stack that
// all containers share and are moved, once, into a vector of exactly their number; duplicate keys
// are found by sorting hashes, where ties are decided by the keys themselves, so that no choice of
// keys makes it slower than n log n.
#include "base/json.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/utf8.h"

namespace stief {

namespace {

// Position of the first byte that is not UTF-8, or text.size().
size_t utf8_end(std::string_view text) {
    size_t i = 0;
    while (i < text.size()) {
        uint64_t eight;
        if (text.size() - i >= 8) {
            std::memcpy(&eight, text.data() + i, 8);
            if (!(eight & 0x8080808080808080u)) {
                i += 8;
                continue;
            }
        }
        size_t length = utf8_length(text, i);
        if (length == 0) return i;
        i += length;
    }
    return i;
}

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

// The last n of the stack, in an array of their own.
template <class T>
std::vector<T> take_last(std::vector<T>& stack, size_t n) {
    auto first = stack.end() - std::ptrdiff_t(n);
    std::vector<T> own(std::make_move_iterator(first), std::make_move_iterator(stack.end()));
    stack.erase(first, stack.end());
    return own;
}

struct Parser {
    std::string_view text;
    const std::string& where;
    int depth_left;
    size_t at = 0;
    std::vector<Json> item_stack;
    std::vector<Json::Member> member_stack;

    char peek() const { return at < text.size() ? text[at] : '\0'; }

    [[noreturn]] void error_at(size_t position, const std::string& problem) const {
        size_t line = 1, column = 1;
        for (size_t i = 0; i < position; i++) {
            if (text[i] == '\n') line++, column = 1;
            else if ((uint8_t(text[i]) & 0xc0) != 0x80) column++;   // counts characters, not bytes
        }
        fail("%s:%zu:%zu: %s", where.c_str(), line, column, problem.c_str());
    }

    [[noreturn]] void expected(const char* what) const {
        std::string found = "the end of the text";
        if (at < text.size()) {
            std::string_view character = text.substr(at, utf8_length(text, at));
            uint8_t c = uint8_t(text[at]);
            found = c < 0x20 || c == 0x7f ? format("byte 0x%02x", c)
                                          : "'" + std::string(character) + "'";
        }
        error_at(at, format("expected %s, found %s", what, found.c_str()));
    }

    void skip_space() {
        while (at < text.size()) {
            char c = text[at];
            if (c != ' ' && c != '\n' && c != '\r' && c != '\t') break;
            at++;
        }
    }

    bool skip_if(char c) {
        if (peek() != c) return false;
        at++;
        return true;
    }

    void word(const char* letters) {
        if (text.substr(at, std::strlen(letters)) != letters) expected("a value");
        at += std::strlen(letters);
    }

    Json value() {
        Json json;
        switch (peek()) {
            case '{': object(json); break;
            case '[': array(json); break;
            case '"': json.kind = Json::String, json.text = string(); break;
            case 'n': word("null"); break;
            case 't': word("true"), json.kind = Json::Bool, json.boolean = true; break;
            case 'f': word("false"), json.kind = Json::Bool; break;
            default: json.kind = Json::Number, json.text = number();
        }
        return json;
    }

    void enter(const char* what) {
        if (depth_left-- == 0) error_at(at, format("%s is nested too deeply", what));
        at++;
        skip_space();
    }

    void array(Json& json) {
        json.kind = Json::Array;
        enter("an array");
        size_t count = 0;
        while (!(count == 0 && peek() == ']')) {
            Json item = value();
            item_stack.push_back(std::move(item));
            count++;
            skip_space();
            if (peek() == ']') break;
            if (!skip_if(',')) expected("',' or ']'");
            skip_space();
        }
        at++;
        json.items = take_last(item_stack, count);
        depth_left++;
    }

    void object(Json& json) {
        json.kind = Json::Object;
        size_t start = at;
        enter("an object");
        size_t count = 0;
        while (!(count == 0 && peek() == '}')) {
            if (peek() != '"') expected(count ? "a name in quotes" : "a name in quotes or '}'");
            std::string key = string();
            skip_space();
            if (!skip_if(':')) expected("':'");
            skip_space();
            Json member = value();
            member_stack.push_back({std::move(key), std::move(member)});
            count++;
            skip_space();
            if (peek() == '}') break;
            if (!skip_if(',')) expected("',' or '}'");
            skip_space();
        }
        at++;
        json.members = take_last(member_stack, count);
        refuse_duplicates(json, start);
        depth_left++;
    }

    void refuse_duplicates(const Json& json, size_t start) const {
        std::vector<std::pair<size_t, std::string_view>> keys;   // (hash, key)
        keys.reserve(json.members.size());
        for (const Json::Member& member : json.members)
            keys.emplace_back(std::hash<std::string_view>()(member.key), member.key);
        std::sort(keys.begin(), keys.end());
        auto twin = std::adjacent_find(keys.begin(), keys.end());
        if (twin != keys.end())
            error_at(start,
                     "this object has two members named " + quote(twin->second.substr(0, 120)));
    }

    std::string string() {
        std::string out;
        size_t plain = ++at;                              // start of what can be copied as it is
        for (;; at++) {
            char c = peek();
            if (c != '"' && c != '\\' && uint8_t(c) >= 0x20) continue;
            if (at == text.size()) expected("a closing '\"'");
            if (uint8_t(c) < 0x20) expected("a character that may stand in a string");
            out.append(text, plain, at - plain);
            if (c == '"') break;
            escape(out);
            plain = at + 1;
        }
        at++;
        return out;
    }

    // At a backslash; ends at the last character of the escape.
    void escape(std::string& out) {
        static constexpr std::string_view names = "\"\\/bfnrt", bytes = "\"\\/\b\f\n\r\t";
        at++;
        size_t which = at < text.size() ? names.find(text[at]) : names.npos;
        if (which != names.npos) {
            out += bytes[which];
            return;
        }
        if (peek() != 'u') expected("one of \" \\ / b f n r t u after a backslash");
        size_t start = at - 1;
        uint32_t c = four_hex_digits();
        if (c >= 0xd800 && c < 0xdc00 && text.substr(at + 1, 2) == "\\u") {
            at += 2;
            uint32_t low = four_hex_digits();
            if (low < 0xdc00 || low > 0xdfff) error_at(start, "half of a surrogate pair");
            c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        }
        if (c >= 0xd800 && c < 0xe000) error_at(start, "half of a surrogate pair");
        append_utf8(out, c);
    }

    // At the 'u'; ends at the last digit.
    uint32_t four_hex_digits() {
        uint32_t c = 0;
        for (int i = 0; i < 4; i++) {
            at++;
            char h = peek();
            if (is_digit(h)) c = c * 16 + uint32_t(h - '0');
            else if ((h | 32) >= 'a' && (h | 32) <= 'f') c = c * 16 + uint32_t((h | 32) - 'a' + 10);
            else expected("four hexadecimal digits after \\u");
        }
        return c;
    }

    std::string number() {
        size_t start = at;
        skip_if('-');
        if (!is_digit(peek())) at = start, expected("a value");
        if (skip_if('0')) {
            if (is_digit(peek())) expected("no digit after a leading 0");
        }
        digits();
        if (skip_if('.')) digits("a digit after '.'");
        if (skip_if('e') || skip_if('E')) {
            if (!skip_if('+')) skip_if('-');
            digits("a digit of the exponent");
        }
        return std::string(text.substr(start, at - start));
    }

    void digits(const char* at_least_one = nullptr) {
        if (at_least_one && !is_digit(peek())) expected(at_least_one);
        while (is_digit(peek())) at++;
    }
};

}  // namespace

Json Json::parse(std::string_view text, const std::string& where, int max_depth) {
    text = without_bom(text);
    Parser parser{text, where, max_depth, 0, {}, {}};
    size_t valid = utf8_end(text);
    if (valid < text.size())
        parser.error_at(valid, format("byte 0x%02x is not UTF-8", uint8_t(text[valid])));
    parser.skip_space();
    Json json = parser.value();
    parser.skip_space();
    if (parser.at < text.size()) parser.expected("the end of the text");
    return json;
}

}  // namespace stief
