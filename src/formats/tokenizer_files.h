// The two files that hold a tokenizer, read into the same thing. where: the file's name, for
// messages. Error where a file asks for anything that this tokenizer does not do.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "formats/bpe.h"
#include "formats/pretokenize.h"

namespace stief {

// A token beside the byte pairs, found in a text by its spelling, before the text is split.
struct AddedToken {
    std::string content;
    Token id;
    bool special;       // not text: found only where the caller asks for it
    bool normalized;    // Hugging Face looks for these second, in what the others have left
    bool lstrip = false, rstrip = false;       // takes the white space before or behind it too
};

struct TokenizerFile {
    Bpe bpe;            // its vocabulary names the added tokens too
    Splitter piece_end;
    std::vector<AddedToken> added;             // no two of one content
    Token bos = -1;     // put in front of every text; −1: none
};

TokenizerFile read_tokenizer_json(std::string_view text, const std::string& where);
TokenizerFile read_tiktoken(std::string_view text, const std::string& where);

}  // namespace stief
