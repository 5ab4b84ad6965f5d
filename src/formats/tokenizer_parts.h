// The parts of a tokenizer.json that two files read.
#pragma once
#include <map>

#include "formats/json_node.h"
#include "formats/tokenizer_files.h"

namespace stief {

struct Spellings {
    Vocabulary vocabulary;                                // bytes of the entries that spell bytes
    std::map<std::string, Token, std::less<>> names;      // the other entries of the vocabulary

    Token find(std::string_view spelling) const;          // of what the file spells so, or −1
};

// Adds their names to the vocabulary. entries: of the vocabulary, where new ids begin.
std::vector<AddedToken> read_added_tokens(Spellings& spellings, size_t entries, const Node& list);

// The token that the post-processor puts in front of a text, or −1. limit: ids are below it.
Token read_beginning(const Node& post_processor, Token limit);

}  // namespace stief
