// Tokens as bytes: id → bytes by an array, bytes → id by an open-addressed hash table over it.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/tokenizer.h"

namespace stief {

struct Vocabulary {
    // Room for so many tokens to be found; ids are below limit.
    Vocabulary(size_t tokens, Token limit);

    // A token that find() finds. False where the id or the bytes are taken.
    bool add(Token id, std::string_view bytes);
    // A token that is only named: find() does not know it. False where the id is taken.
    bool add_name(Token id, std::string_view name);

    Token limit() const { return Token(tokens.size()); }
    bool has(Token id) const { return id >= 0 && id < size && tokens[size_t(id)].taken; }
    std::string_view bytes(Token id) const;               // of an id that it has
    Token find(std::string_view bytes) const;             // −1: no such token

    Token size = 0;                                       // one more than the largest id
    size_t longest = 0;                                   // bytes of the longest token to be found

  private:
    struct Place {
        size_t begin = 0;
        uint32_t length = 0;
        bool taken = false;
    };
    struct Slot {
        uint32_t tag;                                     // upper half of the hash: few ties
        Token id;                                         // −1: empty
    };
    std::string text;                                     // the bytes of all tokens
    std::vector<Place> tokens;                            // by id
    std::vector<Slot> slots;                              // a power of two, at most half taken

    size_t slot_of(std::string_view bytes, uint64_t hash) const;
};

}  // namespace stief
