// Writes one JSON object, member by member, in the order of the calls.
#pragma once
#include <string>
#include <string_view>

#include "base/json.h"

namespace stief {

struct JsonWriter {
    std::string text;

    JsonWriter& begin_object(std::string_view key = "") { return open(key, '{'); }
    JsonWriter& begin_array(std::string_view key = "") { return open(key, '['); }
    JsonWriter& end_object() { return close('}'); }
    JsonWriter& end_array() { return close(']'); }

    // Inside an array the key is "". Numbers that JSON cannot write (NaN, infinity) become null.
    JsonWriter& add(std::string_view key, std::string_view value) { return raw(key, quote(value)); }
    JsonWriter& add(std::string_view key, const char* value) { return raw(key, quote(value)); }
    JsonWriter& add(std::string_view key, double value);
    JsonWriter& add(std::string_view key, size_t value) { return raw(key, std::to_string(value)); }
    JsonWriter& add(std::string_view key, int value) { return raw(key, std::to_string(value)); }
    JsonWriter& add(std::string_view key, bool value) { return raw(key, value ? "true" : "false"); }

  private:
    bool first = true;
    JsonWriter& raw(std::string_view key, std::string_view value);
    JsonWriter& open(std::string_view key, char bracket);
    JsonWriter& close(char bracket);
};

}  // namespace stief
