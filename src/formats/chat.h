// Llama 3's dialogue template, built from ids, never by parsing text:
//     <|begin_of_text|> then for each message
//     <|start_header_id|> role <|end_header_id|> "\n\n" content <|eot_id|>
// and, for the answer, <|start_header_id|> assistant <|end_header_id|> "\n\n".
// Content is stripped of white space at both ends. Source: chat_template of Llama-3-8B-Instruct.
#pragma once
#include <string>
#include <vector>

#include "formats/tokenizer.h"

namespace stief {

struct ChatTemplate {
    explicit ChatTemplate(const Tokenizer& tokenizer);   // Error where a special token is missing

    Token begin_of_text, start_header, end_header, end_of_turn;

    // One whole message, end of turn included. What content spells is text, never special tokens.
    std::vector<Token> message(const std::string& role, const std::string& content) const;
    std::vector<Token> answer_header() const;            // the model speaks next

  private:
    const Tokenizer& tokenizer;
    std::vector<Token> header(const std::string& role) const;   // start_header role end_header
};

}  // namespace stief
