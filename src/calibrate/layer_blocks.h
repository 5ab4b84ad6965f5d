// The blocks of queries of the layer loss: BLOCK tokens times the m heads of a group see the keys
// up to the block's last token, so that two blocks cost 3/4 of the square, four 5/8.
#pragma once
#include <algorithm>
#include <cstddef>

namespace stief {

constexpr int BLOCK = 128;

struct Block {
    int first, tokens;  // its queries
    int seen;           // keys 0 … seen − 1
    size_t offset;      // of its (tokens · m, seen) scores behind those of the blocks before it
};

template <class F>
void for_blocks(int T, int m, const F& block) {
    size_t offset = 0;
    for (int first = 0; first < T; first += BLOCK) {
        int tokens = std::min(BLOCK, T - first);
        block(Block{first, tokens, first + tokens, offset});
        offset += size_t(tokens) * size_t(m) * size_t(first + tokens);
    }
}

inline size_t block_floats(int T, int m) {
    size_t all = 0;
    for_blocks(T, m,
               [&](const Block& b) { all = b.offset + size_t(b.tokens * m) * size_t(b.seen); });
    return all;
}

}  // namespace stief
