// The rotary embedding of a config: its spellings and its frequencies.
//   transformers 4:  "rope_theta": 5e5, "rope_scaling": null or {"rope_type" (older: "type"), …}
//   transformers 5:  "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", …}
#include <cmath>
#include <numbers>
#include <string_view>

#include "base/check.h"
#include "model/config_reader.h"

namespace stief {

namespace {

constexpr double MIN_THETA = 1, MAX_THETA = 1e15, MAX_FACTOR = 1e6;

// An object that holds more than is understood asks for another rotation than would be computed.
void check_keys(const ConfigReader& rope) {
    static constexpr std::string_view known[] = {
        "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
        "original_max_position_embeddings", "partial_rotary_factor"};
    for (const auto& [key, value] : rope.json.members) {
        bool found = value.kind == Json::Null;
        for (std::string_view k : known) found = found || key == k;
        check(found, "%s: %s is not supported", rope.where.c_str(), printable(key).c_str());
    }
    check(rope.number("partial_rotary_factor", 1, 0, 1) == 1,
          "%s: only a rotation of the whole head is supported",
          rope.at("partial_rotary_factor").c_str());
}

// "llama3" or "default"; anything else is refused. rope_type and its older name must agree.
bool is_llama3(const ConfigReader& rope) {
    const Json *type = rope.find("rope_type"), *older = rope.find("type");
    if (!type) type = older;
    if (!type) {
        check(!rope.find("factor"), "%s: rope_type is missing", rope.where.c_str());
        return false;
    }
    const std::string& name = type->string(rope.at("rope_type"));
    if (older && older->string(rope.at("type")) != name)
        fail("%s: rope_type %s and type %s disagree", rope.where.c_str(), quote(name).c_str(),
             quote(older->text).c_str());
    if (name != "llama3" && name != "default")
        fail("%s is %s, expected \"llama3\" or \"default\"", rope.at("rope_type").c_str(),
             quote(name).c_str());
    return name == "llama3";
}

RopeScaling read_scaling(const ConfigReader& rope) {
    check_keys(rope);
    RopeScaling s;
    if (!is_llama3(rope)) return s;
    s.factor = rope.number("factor", 1, MAX_FACTOR);
    s.low_freq_factor = rope.number("low_freq_factor", 1e-6, MAX_FACTOR);
    s.high_freq_factor = rope.number("high_freq_factor", 1e-6, MAX_FACTOR);
    s.original_context = rope.integer("original_max_position_embeddings", 1, 1 << 28);
    check(s.low_freq_factor < s.high_freq_factor,
          "%s: low_freq_factor %g is not below high_freq_factor %g", rope.where.c_str(),
          s.low_freq_factor, s.high_freq_factor);
    return s;
}

bool same(const RopeScaling& a, const RopeScaling& b) {
    return a.factor == b.factor && a.low_freq_factor == b.low_freq_factor &&
           a.high_freq_factor == b.high_freq_factor && a.original_context == b.original_context;
}

}  // namespace

void read_rope(Config& config, const ConfigReader& json) {
    config.rope_theta = json.number("rope_theta", 10000, MIN_THETA, MAX_THETA);
    bool scaled = false;
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
        const Json* value = json.find(key);
        if (!value) continue;
        if (value->kind != Json::Object)
            fail("%s: expected an object, found %s", json.at(key).c_str(), name_of(value->kind));
        ConfigReader rope{*value, json.at(key)};
        RopeScaling scaling = read_scaling(rope);
        double theta = rope.number("rope_theta", config.rope_theta, MIN_THETA, MAX_THETA);
        bool agrees = (!scaled || same(scaling, config.rope_scaling)) &&
                      (!json.find("rope_theta") || theta == config.rope_theta);
        check(agrees, "%s says something else than rope_theta or rope_scaling next to it",
              json.at(key).c_str());
        config.rope_scaling = scaling;
        config.rope_theta = theta;
        scaled = true;
    }
}

// With λ_j = 2π / θ_j the wavelength and C the context of the training before it was stretched:
//     λ_j < C / high:  θ_j        λ_j > C / low:  θ_j / factor
//     in between:      (1 − s) θ_j / factor + s θ_j,   s = (C / λ_j − low) / (high − low)
std::vector<double> rope_frequencies(const Config& config) {
    const RopeScaling& scaling = config.rope_scaling;
    std::vector<double> frequencies;
    for (int j = 0; j < config.d / 2; j++) {
        double theta = std::pow(config.rope_theta, -2.0 * j / config.d);
        if (scaling.factor != 1) {
            double turns = scaling.original_context * theta / (2 * std::numbers::pi);   // C / λ_j
            double s = (turns - scaling.low_freq_factor) /
                       (scaling.high_freq_factor - scaling.low_freq_factor);
            s = s < 0 ? 0 : s > 1 ? 1 : s;
            theta *= (1 - s) / scaling.factor + s;
        }
        frequencies.push_back(theta);
    }
    return frequencies;
}

}  // namespace stief
