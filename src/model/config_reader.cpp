#include "model/config_reader.h"

#include "base/check.h"
#include "base/file.h"
#include "formats/model_folder.h"

namespace stief {

Json read_object(const std::string& path) {
    constexpr size_t MAX_BYTES = 16 << 20;
    expect_real_file(path);
    Json json = Json::parse(read_text(path, MAX_BYTES), path);
    if (json.kind != Json::Object)
        fail("%s: expected an object, found %s", path.c_str(), name_of(json.kind));
    return json;
}

const Json& ConfigReader::need(const char* key) const {
    const Json* value = find(key);
    if (!value) fail("%s: %s is missing", where.c_str(), key);
    return *value;
}

int ConfigReader::integer(const char* key, int64_t low, int64_t high) const {
    return int(need(key).integer(at(key), low, high));
}

int ConfigReader::integer(const char* key, int64_t low, int64_t high, int absent) const {
    return find(key) ? integer(key, low, high) : absent;
}

double ConfigReader::number(const char* key, double low, double high) const {
    double value = need(key).number(at(key));
    check(value >= low && value <= high, "%s: expected a number from %g to %g, found %g",
          at(key).c_str(), low, high, value);
    return value;
}

double ConfigReader::number(const char* key, double absent, double low, double high) const {
    return find(key) ? number(key, low, high) : absent;
}

bool ConfigReader::flag(const char* key, bool absent) const {
    const Json* value = find(key);
    return value ? value->flag(at(key)) : absent;
}

}  // namespace stief
