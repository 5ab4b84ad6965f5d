// What a folder says of its tokenizer beside the tokenizer: tokenizer_config.json, and the template
// of its conversations, which newer folders keep in a file of its own, chat_template.jinja.
#pragma once
#include <optional>
#include <string>

namespace stief {

struct TokenizerConfig {
    std::optional<bool> add_bos;                 // add_bos_token: overrules the tokenizer
    std::string bos_token;                       // "<|begin_of_text|>"; "": none is stated
    std::optional<std::string> chat_template;    // in Jinja; nothing: none is stated
    std::string template_file;                   // where it is stated

    // A folder without these files states nothing. Error where one of them is damaged.
    static TokenizerConfig open(const std::string& folder);
};

}  // namespace stief
