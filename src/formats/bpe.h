// Byte pair encoding (Sennrich et al. 2016) in rank order: of all neighbours that have a merge,
// those of the lowest rank, and of several the leftmost, become one token, until none have one.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "formats/vocabulary.h"

namespace stief {

struct Bpe {
    struct Merge {
        uint32_t rank;
        Token token;                                      // what the two become
    };
    static constexpr uint32_t NO_MERGE = 0xffffffffu;     // a rank

    // vocabulary: all 256 single bytes are tokens. merges: how many will be added.
    Bpe(Vocabulary vocabulary, size_t merges);

    Vocabulary vocabulary;
    bool whole_first = false;                             // a piece that is a token is not merged

    bool add(Token left, Token right, Merge merge);       // false where the pair has one
    Merge find(Token left, Token right) const;            // rank NO_MERGE: none

    void encode(std::vector<Token>& out, std::string_view piece) const;

  private:
    struct Slot {
        uint64_t pair;
        Merge merge;
    };
    std::array<Token, 256> byte;                          // the token of each byte
    std::vector<Slot> slots;                              // open addressing, a power of two

    size_t slot_of(uint64_t pair) const;
    void encode_short(std::vector<Token>& out, std::string_view piece) const;
    void encode_long(std::vector<Token>& out, std::string_view piece) const;
};

}  // namespace stief
