#include "base/json_writer.h"

#include <cmath>

#include "base/check.h"

namespace stief {

JsonWriter& JsonWriter::raw(std::string_view key, std::string_view value) {
    if (!first) text += ", ";
    if (!key.empty()) text += quote(key) + ": ";
    text += value;
    first = false;
    return *this;
}

JsonWriter& JsonWriter::add(std::string_view key, double value) {
    return raw(key, std::isfinite(value) ? format("%.9g", value) : "null");
}

JsonWriter& JsonWriter::open(std::string_view key, char bracket) {
    raw(key, std::string_view(&bracket, 1));
    first = true;
    return *this;
}

JsonWriter& JsonWriter::close(char bracket) {
    text += bracket;
    first = false;
    return *this;
}

}  // namespace stief
