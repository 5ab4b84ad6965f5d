#include "formats/chat.h"

#include "base/check.h"
#include "formats/unicode.h"

namespace stief {

static Token required(const Tokenizer& tokenizer, const char* name) {
    Token id = tokenizer.special(name);
    check(id >= 0, "the tokenizer has no %s, which a conversation needs: this is no chat model",
          name);
    return id;
}

static void append(std::vector<Token>& ids, const std::vector<Token>& more) {
    ids.insert(ids.end(), more.begin(), more.end());
}

ChatTemplate::ChatTemplate(const Tokenizer& t)
    : begin_of_text(required(t, "<|begin_of_text|>")),
      start_header(required(t, "<|start_header_id|>")),
      end_header(required(t, "<|end_header_id|>")),
      end_of_turn(required(t, "<|eot_id|>")),
      tokenizer(t) {}

std::vector<Token> ChatTemplate::header(const std::string& role) const {
    std::vector<Token> ids = {start_header};
    append(ids, tokenizer.encode(role));
    ids.push_back(end_header);
    return ids;
}

// The line breaks and the content are one text: its first piece may take in both.
std::vector<Token> ChatTemplate::message(const std::string& role,
                                         const std::string& content) const {
    std::vector<Token> ids = header(role);
    append(ids, tokenizer.encode("\n\n" + std::string(strip(content))));
    ids.push_back(end_of_turn);
    return ids;
}

std::vector<Token> ChatTemplate::answer_header() const {
    std::vector<Token> ids = header("assistant");
    append(ids, tokenizer.encode("\n\n"));
    return ids;
}

}  // namespace stief
