#include "formats/chat_form.h"

#include <ctime>

#include "base/check.h"
#include "formats/tokenizer_config.h"

namespace stief {

namespace {

// What a template of the family writes, its escapes resolved and its literals joined.
struct Family {
    const char* name;
    const char *system, *answer, *end;      // headers of two messages; a message's last characters
    const char* others;                     // what only the other family writes
};
constexpr Family FAMILIES[] = {
    {"llama3", "<|start_header_id|>system<|end_header_id|>\n\n",
     "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", "<|im_start|>"},
    {"chatml", "<|im_start|>system\n", "<|im_start|>assistant\n", "<|im_end|>\n",
     "<|start_header_id|>"},
};

constexpr std::string_view QUOTES = "'\"";

void replace_all(std::string& text, std::string_view from, std::string_view to) {
    for (size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size())
        text.replace(at, from.size(), to);
}

// "a" + 'b' becomes "ab', and {# … #} nothing.
std::string joined(std::string_view jinja) {
    std::string text(jinja);
    for (size_t at; (at = text.find("{#")) != text.npos;) {
        size_t end = text.find("#}", at);
        text.erase(at, end == text.npos ? end : end + 2 - at);
    }
    replace_all(text, "\\n", "\n");
    for (size_t plus = 0; (plus = text.find('+', plus)) != text.npos; plus++) {
        size_t left = plus, right = plus + 1;
        while (left > 0 && text[left - 1] == ' ') left--;
        while (right < text.size() && text[right] == ' ') right++;
        bool between = left > 0 && right < text.size() &&
                       QUOTES.find(text[left - 1]) != QUOTES.npos &&
                       QUOTES.find(text[right]) != QUOTES.npos;
        if (!between) continue;
        text.erase(left - 1, right + 2 - left);
        plus = left - 2;
    }
    return text;
}

bool contains(std::string_view text, std::string_view what) {
    return text.find(what) != text.npos;
}

// What is written between two texts, as it stands there; nothing where an expression takes part.
std::optional<std::string> literal_after(std::string_view text, std::string_view before,
                                         std::string_view until) {
    for (size_t at = 0; (at = text.find(before, at)) != text.npos;) {
        at += before.size();
        size_t end = text.find(until, at);
        if (end == text.npos) return {};
        std::string_view between = text.substr(at, end - at);
        if (between.find_first_of("'\"{}\\") == between.npos) return std::string(between);
    }
    return {};
}

// {% set system_message = "You are …" %}: a system message that the template itself brings along.
bool sets_system(std::string_view text) {
    for (size_t at = 0; (at = text.find("set ", at)) != text.npos;) {
        at += 4;
        size_t equals = text.find('=', at), end = text.find("%}", at);
        if (equals > end) continue;
        size_t value = text.find_first_not_of(' ', equals + 1);
        bool is_literal = value != text.npos && QUOTES.find(text[value]) != QUOTES.npos;
        bool is_empty = is_literal && text.substr(value + 1, 1) == text.substr(value, 1);
        if (is_literal && !is_empty && contains(text.substr(at, equals - at), "system"))
            return true;
    }
    return false;
}

std::string now(const std::string& how) {
    std::time_t seconds = std::time(nullptr);
    std::tm local{};
    localtime_r(&seconds, &local);
    char text[256];
    return {text, std::strftime(text, sizeof text, how.c_str(), &local)};
}

// The date of a template that asks for it, or that of one that states it (Llama 3.1's first).
std::string date_of(std::string_view text) {
    for (const char* quote : {"\"", "'"}) {
        auto how = literal_after(text, std::string("strftime_now(") + quote, quote);
        if (how) return now(*how);
    }
    for (const char* quote : {"\"", "'"})
        if (auto date = literal_after(text, std::string("date_string = ") + quote, quote))
            return *date;
    return "";
}

// False: the template writes dates, but not as Llama 3.1's does.
bool read_dates(ChatForm& form, std::string_view text) {
    if (!contains(text, "Knowledge Date")) return !contains(text, "strftime_now");
    auto cutoff = literal_after(text, "\"Cutting Knowledge Date: ", "\n\"");
    if (!cutoff || !contains(text, "\"Today Date: \" + date_string + \"\n\n\"")) return false;
    form.name = "llama3.1";
    form.cutoff = *cutoff;
    form.date = date_of(text);
    return !form.date.empty();
}

ChatForm named(const std::string& name, const Tokenizer& tokenizer) {
    ChatForm form;
    form.name = name;
    form.strips = name != "chatml";
    if (form.strips) form.bos = "<|begin_of_text|>";
    else if (tokenizer.bos() >= 0) form.bos = tokenizer.bytes(tokenizer.bos());
    if (name == "llama3.1") form.cutoff = "December 2023", form.date = now("%d %b %Y");
    return form;
}

}  // namespace

std::string ChatForm::dates() const {
    if (date.empty()) return "";
    return "Cutting Knowledge Date: " + cutoff + "\nToday Date: " + date + "\n\n";
}

std::optional<ChatForm> recognise(std::string_view jinja, const std::string& bos) {
    std::string text = joined(jinja);
    for (const Family& family : FAMILIES) {
        bool writes = contains(text, family.answer) && contains(text, family.end);
        if (!writes || contains(text, family.others)) continue;
        if (contains(text, "<think>") || sets_system(text)) return {};
        ChatForm form;
        form.name = family.name;
        if (contains(text, "bos_token")) form.bos = bos;
        if (contains(text, "<|begin_of_text|>")) form.bos = "<|begin_of_text|>";
        form.strips = contains(text, "trim") || contains(text, ".strip()");
        if (!read_dates(form, text)) return {};
        if (form.date.empty()) form.default_system = literal_after(text, family.system, family.end);
        bool own_system = contains(text, family.system) && form.date.empty();
        if (own_system && !form.default_system) return {};
        return form;
    }
    return {};
}

ChatForm chat_form(const std::string& folder, const Tokenizer& tokenizer, const std::string& name,
                   const std::string& date) {
    TokenizerConfig config = TokenizerConfig::open(folder);
    std::optional<ChatForm> form;
    if (!name.empty()) {
        form = named(name, tokenizer);
    } else {
        check(config.chat_template.has_value(),
              "%s states no chat template (a base model?): stief generate continues a text, and "
              "--template NAME (%s) makes conversations of that form",
              folder.c_str(), CHAT_FORMS);
        form = recognise(*config.chat_template, config.bos_token);
        check(form.has_value(),
              "%s states a chat template that is not known here (%s are): --template NAME takes "
              "one of these instead, stief generate --special a prompt with its headers spelt out",
              config.template_file.c_str(), CHAT_FORMS);
    }
    if (!date.empty())
        check(!form->date.empty(), "--date %s: conversations of the form %s state no date",
              date.c_str(), form->name.c_str());
    if (!date.empty()) form->date = date;
    return *form;
}

}  // namespace stief
