// How a folder's conversations are written, as its chat template (Jinja) states it. A template is
// not run but recognised as one of the families that Llamas come with, by what it writes:
//
//   llama3     <|start_header_id|> role <|end_header_id|> "\n\n" content <|eot_id|>
//   llama3.1   the same behind a system message that always begins with two lines of dates
//   chatml     <|im_start|> role "\n" content <|im_end|> "\n"
//
// and, for the answer, the header of a message of the assistant. What differs within a family is
// read from the template: BOS, whether contents are stripped, the system message where none is
// given, the dates. A template that states more than that is another one.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "formats/tokenizer.h"

namespace stief {

inline constexpr char CHAT_FORMS[] = "llama3, llama3.1, chatml";

struct ChatForm {
    std::string name;                              // one of CHAT_FORMS
    std::string bos;                               // the token in front of it all; "": none
    bool strips = false;                           // contents, of white space at both ends
    std::optional<std::string> default_system;     // where a conversation has no system message
    std::string cutoff, date;                      // llama3.1's two lines; "": no such lines

    std::string dates() const;                     // what a system message begins with
};

// name: that form as its first model has it, whatever the folder states; "": what the folder
// states. date: overrules today's in a form with dates ("26 Jul 2024"). Error where the folder
// states none or another, where the tokenizer lacks BOS, and for a date without a place.
ChatForm chat_form(const std::string& folder, const Tokenizer& tokenizer, const std::string& name,
                   const std::string& date);

// The form that a template states; nothing: it is of no family. bos: what its bos_token stands for.
std::optional<ChatForm> recognise(std::string_view jinja, const std::string& bos);

}  // namespace stief
