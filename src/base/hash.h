// One hash for all that must be told apart: models, bases, runs, files. FNV-1a over 64-bit words,
// each folded, finished as splitmix64 so that every bit reaches every other. For given words around
// it every step is a bijection: a change of one word never goes unnoticed. No defence from malice.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

namespace stief {

struct Hash {
    uint64_t state = 0xcbf29ce484222325u;

    void add(uint64_t word) {
        state = (state ^ word) * 0x100000001b3u;
        state ^= state >> 32;
    }
    void add(double x) { add(std::bit_cast<uint64_t>(x)); }
    // Eight at a time, what is left one by one.
    void add_bytes(const void* bytes, size_t size) {
        auto* next = static_cast<const unsigned char*>(bytes);
        for (; size >= 8; size -= 8, next += 8) {
            uint64_t word;
            std::memcpy(&word, next, 8);
            add(word);
        }
        for (; size > 0; size--) add(uint64_t(*next++));
    }
    uint64_t value() const {
        uint64_t z = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
};

}  // namespace stief
