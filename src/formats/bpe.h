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

    // merges: how many will be added. unknown: the token of a byte that vocabulary lacks; −1: such
    // a byte gives none, and its neighbours become each other's.
    Bpe(Vocabulary vocabulary, size_t merges, Token unknown = -1);

    Vocabulary vocabulary;
    bool whole_first = false;                             // a piece that is a token is not merged

    void add(Token left, Token right, Merge merge);       // in the place of one that the pair has
    Merge find(Token left, Token right) const;            // rank NO_MERGE: none

    void encode(std::vector<Token>& out, std::string_view piece) const;

  private:
    struct Slot {
        uint64_t pair;
        Merge merge;
    };
    std::array<Token, 256> byte;                          // the token of each byte, or −1
    std::vector<Slot> slots;                              // open addressing, a power of two

    size_t slot_of(uint64_t pair) const;
    void encode_short(std::vector<Token>& out, std::string_view piece) const;
    void encode_long(std::vector<Token>& out, std::string_view piece) const;
};

}  // namespace stief
