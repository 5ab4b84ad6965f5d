#include "formats/tokenizer_config.h"

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"

namespace stief {

static constexpr size_t MAX_BYTES = 16 << 20;

// "…" or {"content": "…"}, as transformers writes a token.
static std::string token_of(const Json* json, const std::string& where) {
    if (!json) return "";
    const Json* content = json->kind == Json::Object ? json->find("content") : json;
    return content ? content->string(where) : "";
}

// The template, or of several, [{"name": …, "template": …}], the one called default.
static std::optional<std::string> template_of(const Json* json, const std::string& where) {
    if (!json) return {};
    if (json->kind != Json::Array) return json->string(where);
    for (const Json& one : json->items) {
        const Json *name = one.find("name"), *text = one.find("template");
        if (name && text && name->string(where) == "default") return text->string(where);
    }
    return {};
}

TokenizerConfig TokenizerConfig::open(const std::string& folder) {
    TokenizerConfig config;
    std::string path = join(folder, "tokenizer_config.json");
    if (file_exists(path)) {
        Json json = Json::parse(read_text(path, MAX_BYTES), path);
        if (json.kind != Json::Object)
            fail("%s: expected an object, found %s", path.c_str(), name_of(json.kind));
        if (const Json* add = json.find("add_bos_token"))
            config.add_bos = add->flag(path + ": add_bos_token");
        if (const Json* add = json.find("add_eos_token"))
            check(!add->flag(path + ": add_eos_token"),
                  "%s: add_eos_token is true: a token behind every text is not supported",
                  path.c_str());
        config.bos_token = token_of(json.find("bos_token"), path + ": bos_token");
        config.chat_template = template_of(json.find("chat_template"), path + ": chat_template");
        config.template_file = path;
    }
    path = join(folder, "chat_template.jinja");
    if (!file_exists(path)) return config;
    config.chat_template = without_bom(read_text(path, MAX_BYTES));
    config.template_file = path;
    return config;
}

}  // namespace stief
