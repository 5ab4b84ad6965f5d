#include "formats/chat.h"

#include "base/check.h"
#include "formats/unicode.h"

namespace stief {

static Token required(const Tokenizer& tokenizer, const std::string& name, const ChatForm& form) {
    Token id = tokenizer.special(name);
    check(id >= 0, "the tokenizer has no %s, which a conversation of the form %s needs (another "
          "--template, or stief generate?)", name.c_str(), form.name.c_str());
    return id;
}

static void append(std::vector<Token>& ids, const std::vector<Token>& more) {
    ids.insert(ids.end(), more.begin(), more.end());
}

ChatTemplate::ChatTemplate(const Tokenizer& t, const ChatForm& f)
    : form(f), tokenizer(t), bos(f.bos.empty() ? -1 : required(t, f.bos, f)) {
    bool chatml = form.name == "chatml";
    start = required(t, chatml ? "<|im_start|>" : "<|start_header_id|>", form);
    end_header = chatml ? -1 : required(t, "<|end_header_id|>", form);
    end_of_turn = required(t, chatml ? "<|im_end|>" : "<|eot_id|>", form);
}

std::vector<Token> ChatTemplate::header(const std::string& role, const std::string& content) const {
    std::vector<Token> ids = {start};
    if (end_header < 0) {
        append(ids, tokenizer.encode(role + "\n" + content));
    } else {
        append(ids, tokenizer.encode(role));
        ids.push_back(end_header);
        append(ids, tokenizer.encode("\n\n" + content));
    }
    return ids;
}

std::vector<Token> ChatTemplate::whole(const std::string& role, const std::string& content) const {
    std::vector<Token> ids = header(role, content);
    append(ids, answer_end());
    return ids;
}

std::string ChatTemplate::content_of(const std::string& text) const {
    return form.strips ? std::string(strip(text)) : text;
}

std::vector<Token> ChatTemplate::opening() const {
    std::vector<Token> ids;
    if (bos >= 0) ids.push_back(bos);
    if (form.default_system) append(ids, whole("system", *form.default_system));
    else if (!form.date.empty()) append(ids, whole("system", form.dates()));
    return ids;
}

std::vector<Token> ChatTemplate::opening(const std::string& system) const {
    std::vector<Token> ids;
    if (bos >= 0) ids.push_back(bos);
    append(ids, whole("system", form.dates() + content_of(system)));
    return ids;
}

std::vector<Token> ChatTemplate::message(const std::string& role,
                                         const std::string& content) const {
    return whole(role, content_of(content));
}

std::vector<Token> ChatTemplate::answer_header() const {
    return header("assistant", "");
}

std::vector<Token> ChatTemplate::answer_end() const {
    std::vector<Token> ids = {end_of_turn};
    if (end_header < 0) append(ids, tokenizer.encode("\n"));
    return ids;
}

std::vector<Token> end_tokens(const Tokenizer& tokenizer) {
    std::vector<Token> ids;
    for (const char* name :
         {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"})
        if (Token id = tokenizer.special(name); id >= 0) ids.push_back(id);
    return ids;
}

}  // namespace stief
