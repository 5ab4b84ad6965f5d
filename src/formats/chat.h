// A dialogue in the form that a model was trained on, built from ids, never by parsing text: what a
// content spells is text. For each message
//     <|start_header_id|> role <|end_header_id|> "\n\n" content <|eot_id|>      llama3, llama3.1
//     <|im_start|> role "\n" content <|im_end|> "\n"                            chatml
// What stands between two special tokens is one text: a piece of it may take in line breaks and
// content. The ids are those of the folder's template run over the same messages.
#pragma once
#include <string>
#include <vector>

#include "formats/chat_form.h"
#include "formats/tokenizer.h"

namespace stief {

struct ChatTemplate {
    ChatTemplate(const Tokenizer& tokenizer, const ChatForm& form);  // Error: a token is missing

    ChatForm form;
    Token end_of_turn;

    // What comes before the first message: BOS, and the system message that the form brings along.
    std::vector<Token> opening() const;
    // The same with a system message of one's own.
    std::vector<Token> opening(const std::string& system) const;
    // One whole message, end of turn included.
    std::vector<Token> message(const std::string& role, const std::string& content) const;
    std::vector<Token> answer_header() const;             // the model speaks next
    std::vector<Token> answer_end() const;                // what follows its answer

  private:
    const Tokenizer& tokenizer;
    Token bos, start, end_header;                         // −1: the form has none
    std::vector<Token> header(const std::string& role, const std::string& content) const;
    std::vector<Token> whole(const std::string& role, const std::string& content) const;
    std::string content_of(const std::string& text) const;
};

// Where an answer ends, whatever a config lists: every end of turn, message and text that models of
// these families have, as far as the tokenizer has it.
std::vector<Token> end_tokens(const Tokenizer& tokenizer);

}  // namespace stief
