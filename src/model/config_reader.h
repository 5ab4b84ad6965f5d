// Reading an object of config.json: numbers in their bounds, and what is missing named.
#pragma once
#include <string>

#include "base/json.h"
#include "model/config.h"

namespace stief {

struct ConfigReader {
    const Json& json;
    std::string where;                                // "config.json", "config.json: rope_scaling"

    std::string at(const char* key) const { return where + ": " + key; }

    const Json* find(const char* key) const { return json.find(key); }
    const Json& need(const char* key) const;          // Error where it is absent

    int integer(const char* key, int64_t low, int64_t high) const;
    int integer(const char* key, int64_t low, int64_t high, int absent) const;
    double number(const char* key, double low, double high) const;
    double number(const char* key, double absent, double low, double high) const;
    bool flag(const char* key, bool absent) const;
};

// rope_theta and rope_scaling of config, in any of the spellings in the wild.
void read_rope(Config& config, const ConfigReader& json);

}  // namespace stief
