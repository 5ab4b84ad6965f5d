// Two ways to the same tokens. A piece of text is nearly always a few bytes, where scanning an
// array for the lowest rank is quickest; it may be a megabyte, where a heap makes it O(n log n).
#include "formats/bpe.h"

#include <bit>
#include <functional>
#include <queue>
#include <utility>

#include "base/check.h"

namespace stief {

static constexpr uint64_t EMPTY = ~uint64_t(0);           // no pair: ids are not negative
static constexpr size_t SHORT = 48;                       // bytes of a piece

static uint64_t pair_of(Token left, Token right) {
    return uint64_t(uint32_t(left)) << 32 | uint32_t(right);
}

Bpe::Bpe(Vocabulary v, size_t merges, Token unknown)
    : vocabulary(std::move(v)),
      slots(std::bit_ceil(merges + merges / 2 + 2), Slot{EMPTY, {NO_MERGE, -1}}) {
    for (size_t b = 0; b < 256; b++) {
        char c = char(b);
        byte[b] = vocabulary.find({&c, 1});
        if (byte[b] < 0) byte[b] = unknown;
    }
}

// The slot that holds the pair, or the empty one where it belongs.
size_t Bpe::slot_of(uint64_t pair) const {
    uint64_t hash = pair * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
    size_t mask = slots.size() - 1, i = hash & mask;
    while (slots[i].pair != pair && slots[i].pair != EMPTY) i = (i + 1) & mask;
    return i;
}

void Bpe::add(Token left, Token right, Merge merge) {
    slots[slot_of(pair_of(left, right))] = {pair_of(left, right), merge};
}

Bpe::Merge Bpe::find(Token left, Token right) const {
    return slots[slot_of(pair_of(left, right))].merge;
}

void Bpe::encode(std::vector<Token>& out, std::string_view piece) const {
    if (whole_first && piece.size() <= vocabulary.longest) {
        Token whole = vocabulary.find(piece);
        if (whole >= 0) return out.push_back(whole);
    }
    piece.size() <= SHORT ? encode_short(out, piece) : encode_long(out, piece);
}

// merge[i] is that of token[i] and token[i + 1].
void Bpe::encode_short(std::vector<Token>& out, std::string_view piece) const {
    std::array<Token, SHORT> token;
    std::array<Merge, SHORT> merge;
    size_t n = 0;
    for (char c : piece)
        if (Token one = byte[uint8_t(c)]; one >= 0) token[n++] = one;
    for (size_t i = 0; i + 1 < n; i++) merge[i] = find(token[i], token[i + 1]);

    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (merge[i].rank < merge[best].rank) best = i;
        if (merge[best].rank == NO_MERGE) break;

        token[best] = merge[best].token;
        n--;
        for (size_t i = best + 1; i < n; i++) token[i] = token[i + 1];
        for (size_t i = best + 1; i + 1 < n; i++) merge[i] = merge[i + 1];
        if (best > 0) merge[best - 1] = find(token[best - 1], token[best]);
        if (best + 1 < n) merge[best] = find(token[best], token[best + 1]);
    }
    out.insert(out.end(), token.begin(), token.begin() + std::ptrdiff_t(n));
}

// The tokens are a linked list over the bytes where they begin. The heap holds (rank, place of the
// left token); an entry is stale, and skipped, where these neighbours have another merge by now.
void Bpe::encode_long(std::vector<Token>& out, std::string_view piece) const {
    struct Link {
        Token token;                                      // −1: merged into an earlier one
        uint32_t previous, next;                          // next of the last one is n
    };
    check(piece.size() < 0xffffffffu, "text: a word of %zu bytes, expected at most 4 GB",
          piece.size());
    std::vector<Link> link;
    link.reserve(piece.size());
    for (char c : piece)
        if (Token one = byte[uint8_t(c)]; one >= 0)
            link.push_back({one, uint32_t(link.size()) - 1, uint32_t(link.size()) + 1});
    uint32_t n = uint32_t(link.size());

    std::vector<uint64_t> entries;
    for (uint32_t i = 0; i + 1 < n; i++) {
        uint32_t rank = find(link[i].token, link[i + 1].token).rank;
        if (rank != NO_MERGE) entries.push_back(uint64_t(rank) << 32 | i);
    }
    std::priority_queue heap(std::greater<uint64_t>(), std::move(entries));
    auto offer = [&](uint32_t left, uint32_t right) {
        uint32_t rank = find(link[left].token, link[right].token).rank;
        if (rank != NO_MERGE) heap.push(uint64_t(rank) << 32 | left);
    };

    while (!heap.empty()) {
        uint32_t rank = uint32_t(heap.top() >> 32), left = uint32_t(heap.top());
        heap.pop();
        uint32_t right = link[left].next;
        if (link[left].token < 0 || right == n) continue;
        Merge merge = find(link[left].token, link[right].token);
        if (merge.rank != rank) continue;

        uint32_t after = link[right].next;
        link[right].token = -1;
        link[left].token = merge.token;
        link[left].next = after;
        if (left > 0) offer(link[left].previous, left);
        if (after < n) link[after].previous = left, offer(left, after);
    }
    for (uint32_t i = 0; i < n; i = link[i].next) out.push_back(link[i].token);
}

}  // namespace stief
