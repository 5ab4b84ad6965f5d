// From config.json, and the end ids of generation_config.json, to a Config. Where a key is absent,
// the default is that of transformers' LlamaConfig, as long as a wrong guess could not go
// unnoticed. Rotary embedding: rope.cpp.
#include "model/config.h"

#include <algorithm>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "formats/model_folder.h"
#include "model/config_reader.h"

namespace stief {

namespace {

// Far above any Llama (405B: 126 layers, width 16384), far below where a product of two overflows.
constexpr int64_t MAX_LAYERS = 4096, MAX_HEADS = 4096, MAX_HEAD_WIDTH = 4096, MAX_WIDTH = 1 << 20,
                  MAX_FFN = 1 << 22, MAX_CONTEXT = 1 << 28;

void check_architecture(const ConfigReader& json) {
    const Json* type = json.find("model_type");
    const Json* names = json.find("architectures");
    check(type || names, "%s: neither model_type nor architectures: this is no model's config",
          json.where.c_str());
    if (type && type->string(json.at("model_type")) != "llama")
        fail("%s is %s, expected \"llama\": only Llama 3, 3.1, 3.2 and their like are run",
             json.at("model_type").c_str(), quote(type->text).c_str());
    bool causal = !names;
    if (names && names->kind == Json::Array)
        for (const Json& name : names->items)
            causal = causal || (name.kind == Json::String && name.text == "LlamaForCausalLM");
    check(causal, "%s: expected \"LlamaForCausalLM\" among them", json.at("architectures").c_str());
}

// What changes the mathematics of the model and is not computed here is refused by name.
void check_features(const ConfigReader& json) {
    for (const char* key : {"attention_bias", "mlp_bias"})
        check(!json.flag(key, false), "%s is true: a Llama with biases is not supported",
              json.at(key).c_str());
    if (const Json* act = json.find("hidden_act"))
        if (act->string(json.at("hidden_act")) != "silu" && act->text != "swish")
            fail("%s is %s, expected \"silu\"", json.at("hidden_act").c_str(),
                 quote(act->text).c_str());
    if (const Json* quantization = json.find("quantization_config")) {
        const Json* method = quantization->find("quant_method");
        fail("%s: the weights are quantised (%s), which is not supported; use the original model",
             json.at("quantization_config").c_str(),
             method && method->kind == Json::String ? printable(method->text).c_str() : "unknown");
    }
    if (const Json* mlx = json.find("quantization")) {
        const Json* bits = mlx->find("bits");
        fail("%s: the weights are quantised by MLX (%s bits), which is not supported; use the "
             "original model",
             json.at("quantization").c_str(),
             bits && bits->kind == Json::Number ? printable(bits->text).c_str() : "some");
    }
    if (json.find("sliding_window") && json.flag("use_sliding_window", true))
        fail("%s is set: sliding windows are not supported", json.at("sliding_window").c_str());
    if (const Json* types = json.find("layer_types"))
        for (const Json& type : types->items)
            if (type.string(json.at("layer_types")) != "full_attention")
                fail("%s has %s, expected \"full_attention\" only", json.at("layer_types").c_str(),
                     quote(type.text).c_str());
    if (json.number("partial_rotary_factor", 1, 0, 1) != 1)
        fail("%s: only a rotation of the whole head is supported",
             json.at("partial_rotary_factor").c_str());
}

void read_shape(Config& c, const ConfigReader& json) {
    c.L = json.integer("num_hidden_layers", 1, MAX_LAYERS);
    c.D = json.integer("hidden_size", 1, MAX_WIDTH);
    c.F = json.integer("intermediate_size", 1, MAX_FFN);
    c.V = json.integer("vocab_size", 1, MAX_VOCABULARY);
    c.H = json.integer("num_attention_heads", 1, MAX_HEADS);
    c.G = json.find("num_key_value_heads") ? json.integer("num_key_value_heads", 1, c.H) : c.H;
    check(c.H % c.G == 0, "%s: %d attention heads cannot be shared by %d key and value heads",
          json.where.c_str(), c.H, c.G);
    if (json.find("head_dim")) {
        c.d = json.integer("head_dim", 2, MAX_HEAD_WIDTH);
    } else {
        check(c.D % c.H == 0, "%s: hidden_size %d is no multiple of num_attention_heads %d",
              json.where.c_str(), c.D, c.H);
        c.d = c.D / c.H;
    }
    check(c.d % 2 == 0, "%s: heads of width %d cannot be rotated in pairs", json.where.c_str(),
          c.d);
    check(c.d <= MAX_HEAD_WIDTH, "%s: heads of width %d: expected at most %d", json.where.c_str(),
          c.d, int(MAX_HEAD_WIDTH));
    c.context = json.integer("max_position_embeddings", 1, MAX_CONTEXT, 2048);
    c.norm_eps = float(json.number("rms_norm_eps", 1e-6, 1e-30, 1));
    c.tied_embeddings = json.flag("tie_word_embeddings", false);
}

// eos_token_id is a number or a list. Both files may name end ids: each of them ends an answer.
void read_token_ids(Config& c, const ConfigReader& json) {
    if (json.find("bos_token_id") && c.bos < 0)
        c.bos = json.integer("bos_token_id", 0, c.V - 1);
    const Json* eos = json.find("eos_token_id");
    if (!eos) return;
    auto add = [&](const Json& id) {
        Token token = Token(id.integer(json.at("eos_token_id"), 0, c.V - 1));
        if (std::find(c.eos.begin(), c.eos.end(), token) == c.eos.end()) c.eos.push_back(token);
    };
    if (eos->kind != Json::Array) return add(*eos);
    for (const Json& id : eos->items) add(id);
}

}  // namespace

Config Config::open(const std::string& folder) {
    expect_model_folder(folder);
    std::string path = join(folder, "config.json");
    expect_real_file(path);
    if (!file_exists(path)) no_config(folder);
    Config c;
    c.folder = folder;
    Json json = read_object(path);
    ConfigReader reader{json, path};
    check_architecture(reader);
    check_features(reader);
    read_shape(c, reader);
    read_rope(c, reader);
    read_token_ids(c, reader);

    path = join(folder, GENERATION_CONFIG);
    if (!file_exists(path)) return c;
    Json generation = read_object(path);
    read_token_ids(c, ConfigReader{generation, path});
    return c;
}

}  // namespace stief
