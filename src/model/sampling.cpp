#include "model/sampling.h"

#include "base/file.h"
#include "model/config_reader.h"

namespace stief {

// transformers' options that change what is drawn, and the number that switches each off.
static constexpr struct {
    const char* key;
    double off;
} UNDONE[] = {
    {"repetition_penalty", 1},         {"encoder_repetition_penalty", 1},
    {"no_repeat_ngram_size", 0},       {"encoder_no_repeat_ngram_size", 0},
    {"typical_p", 1},                  {"epsilon_cutoff", 0},
    {"eta_cutoff", 0},                 {"penalty_alpha", 0},
    {"num_beams", 1},                  {"num_beam_groups", 1},
    {"diversity_penalty", 0},          {"guidance_scale", 1},
    {"frequency_penalty", 0},          {"presence_penalty", 0},
    {"min_length", 0},                 {"min_new_tokens", 0},
};
static constexpr const char* UNDONE_LISTS[] = {
    "bad_words_ids",  "suppress_tokens",      "begin_suppress_tokens", "force_words_ids",
    "stop_strings",   "forced_bos_token_id",  "forced_eos_token_id",   "sequence_bias",
    "constraints",    "watermarking_config",  "forced_decoder_ids",
    "exponential_decay_length_penalty"};

static std::string undone(const ConfigReader& json) {
    std::string list;
    auto add = [&](const std::string& one) { list += (list.empty() ? "" : ", ") + one; };
    for (const auto& option : UNDONE) {
        const Json* value = json.find(option.key);
        if (!value || value->kind == Json::Bool) continue;
        if (value->kind == Json::Number && value->number("") == option.off) continue;
        add(option.key + (value->kind == Json::Number ? " " + value->text : std::string()));
    }
    for (const char* key : UNDONE_LISTS) {
        const Json* value = json.find(key);
        bool empty = !value || (value->kind == Json::Array && value->items.empty()) ||
                     (value->kind == Json::Object && value->members.empty());
        if (!empty) add(key);
    }
    return list;
}

// transformers' implicit top_k = 50 is not taken over: a filter that no file states surprises.
Sampling Sampling::open(const std::string& folder) {
    Sampling s;
    std::string path = join(folder, GENERATION_CONFIG);
    if (!file_exists(path)) return s;
    Json file = read_object(path);
    ConfigReader json{file, path};
    s.greedy = !json.flag("do_sample", false);
    s.temperature = json.number("temperature", 1, 0, 1000);
    s.top_k = std::max(0, json.integer("top_k", -1, MAX_VOCABULARY, 0));
    s.top_p = json.number("top_p", 1, 0, 1);
    s.min_p = json.number("min_p", 0, 0, 1);
    s.ignored = undone(json);
    return s;
}

}  // namespace stief
