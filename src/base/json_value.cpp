// What a parsed value is as a C++ type, and strings as JSON.
#include <charconv>
#include <cstdint>

#include "base/check.h"
#include "base/json.h"
#include "base/utf8.h"

namespace stief {

const char* name_of(Json::Kind kind) {
    switch (kind) {
        case Json::Null: return "null";
        case Json::Bool: return "true or false";
        case Json::Number: return "a number";
        case Json::String: return "a string";
        case Json::Array: return "an array";
        case Json::Object: return "an object";
    }
    return "nothing";
}

static void expect(const Json& json, Json::Kind kind, const std::string& where) {
    if (json.kind != kind)
        fail("%s: expected %s, found %s", where.c_str(), name_of(kind), name_of(json.kind));
}

const Json* Json::find(std::string_view key) const {
    for (const Member& member : members)
        if (member.key == key) return member.value.kind == Null ? nullptr : &member.value;
    return nullptr;
}

double Json::number(const std::string& where) const {
    expect(*this, Number, where);
    double value = 0;
    auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc() || result.ptr != text.data() + text.size())
        fail("%s: %.40s does not fit a double", where.c_str(), text.c_str());
    return value;
}

int64_t Json::integer(const std::string& where, int64_t low, int64_t high) const {
    expect(*this, Number, where);
    int64_t value = 0;
    auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    bool fits = result.ec == std::errc() && result.ptr == text.data() + text.size();
    if (!fits || value < low || value > high)
        fail("%s: expected an integer from %lld to %lld, found %.40s", where.c_str(),
             (long long)low, (long long)high, text.c_str());
    return value;
}

bool Json::flag(const std::string& where) const {
    expect(*this, Bool, where);
    return boolean;
}

const std::string& Json::string(const std::string& where) const {
    expect(*this, String, where);
    return text;
}

std::string quote(std::string_view text) {
    std::string out = "\"";
    for (size_t i = 0; i < text.size();) {
        uint8_t c = uint8_t(text[i]);
        size_t length = utf8_length(text, i);
        if (length == 0) {
            append_utf8(out, 0xfffd);
        } else if (c == '"' || c == '\\') {
            out += {'\\', char(c)};
        } else if (c == '\n') {
            out += "\\n";
        } else if (c < 0x20 || c == 0x7f) {
            out += format("\\u%04x", c);
        } else {
            out.append(text, i, length);
        }
        i += length ? length : 1;
    }
    return out + '"';
}

std::string printable(std::string_view name) {
    constexpr size_t LONGEST = 120;
    std::string quoted = quote(name.substr(0, LONGEST));
    if (name.size() > LONGEST) return quoted + "...";
    return quoted.size() == name.size() + 2 && !name.empty() ? std::string(name) : quoted;
}

}  // namespace stief
