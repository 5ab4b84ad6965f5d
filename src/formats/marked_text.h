// A text of several kinds, conversations among them, whose turns stand in no model's own form:
//
//     === stief text             the first line; what follows up to the first part is for people
//     === part NAME              what follows is measured by that name
//     === document               another piece of the part (the first need not be announced)
//     === conversation           its turns follow:
//     === system                 at most one, the first
//     === user
//     === assistant
//
// A mark is a line of its own. White space around a piece or a turn is not part of it.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "formats/chat.h"

namespace stief {

struct MarkedText {
    struct Turn {
        std::string role, content;     // role "": a document
    };
    using Piece = std::vector<Turn>;   // a document is one turn
    struct Part {
        std::string name;
        std::vector<Piece> piece;
    };
    std::vector<Part> part;

    static bool is_marked(std::string_view text);
    // Error with the line where a mark is not one of these or stands where it cannot.
    static MarkedText parse(std::string_view text, const std::string& where);
};

// Piece after piece. Conversations are those of the template; without one their contents are text.
// No BOS: it begins what a model is given, and a piece in the middle of a sequence does not.
std::vector<Token> encode_part(const MarkedText::Part& part, const Tokenizer& tokenizer,
                               const ChatTemplate* chat);

}  // namespace stief
