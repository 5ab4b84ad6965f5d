// Rows of codes on their way to tensor cores: taken apart in registers, the eight codes of a group by
// one lane, into integers of 8 bits in bf16 or f16, which both hold exactly (calibrate/README.md §8).
// Steps and scales stay outside: attention has them in its queries and weights.
#pragma once
#include "coded_rows.cuh"

namespace stief {

// Eight codes of a row: where they are, and what they count.
struct alignas(16) CodeGroup {
    int byte, bits;  // from the row's first byte
    float step;      // Δ_b
    int unused;

    __device__ static CodeGroup of(const RowFormat& format, int element, int group) {
        CodePlace at(format, element, int(format.count[0]) + ROW_GROUP * group);
        return {at.byte, bits_of(at.w), step_of(at.w), 0};
    }
};

// Levels + 128, a byte each, by code. Shared memory: no lookup in `many` has a conflict of banks, as
// all of it is no more than one byte line of them.
struct alignas(16) LevelTables {
    uint4 few[5];        // of 1 to 4 bits: what registers hold of them
    uint8_t many[96];    // of 6 bits, then of 5
    static constexpr int FIVE = 64, BYTES = 5 * 16 + 96;
    static_assert(Levels::biased_at(6) == 0 && Levels::biased_at(5) == FIVE);

    __device__ void fill(int i, int threads) {
        uint8_t* to = reinterpret_cast<uint8_t*>(this);
        for (; i < BYTES; i += threads) {
            int bits = i / 16, code = i % 16;
            bool one = bits > 0 && code < 1 << bits;
            to[i] = i >= 80 ? DEVICE_LEVELS.biased[i - 80]
                            : one ? DEVICE_LEVELS.biased[Levels::biased_at(bits) + code] : 0;
        }
    }
};
static_assert(sizeof(LevelTables) == LevelTables::BYTES);

// Bits of `mask` from y, the others from x.
__device__ __forceinline__ uint32_t select_bits(uint32_t x, uint32_t y, uint32_t mask) {
    return (x & ~mask) | (y & mask);
}

// Codes of at most 4 bits, one a nibble, the first eight of `packed`.
__device__ __forceinline__ uint32_t nibbles_of(uint32_t packed, int bits) {
    int gap = 4 - bits;  // halves, bytes, nibbles: each time the upper ones move up
    uint32_t x = select_bits(packed, packed << 4 * gap, 0xffff0000);
    x = select_bits(x, x << 2 * gap, 0xff00ff00);
    x = select_bits(x, x << gap, 0xf0f0f0f0);
    return x & 0x11111111u * ((1u << bits) - 1);
}

// The group's eight levels + 128, a byte each. from: shared, any address; the words that the bytes
// lie in are read, and the one after them.
__device__ __forceinline__ uint2 levels_of(const LevelTables& tables, const CodeGroup& group,
                                           const char* from) {
    unsigned at = unsigned(reinterpret_cast<uintptr_t>(from) % 4);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(from - at);
    uint32_t low = funnel_right(words[0], words[1], 8 * at);
    if (group.bits <= 4) {
        uint32_t index = nibbles_of(low, group.bits), lower = index & 0x77777777;
        uint4 table = tables.few[group.bits];
        uint2 levels = {permute_bytes(table.x, table.y, lower & 0xffff),
                        permute_bytes(table.x, table.y, lower >> 16)};
        if (group.bits == 4) {
            uint32_t upper = index >> 1 & 0x44444444;  // 4 where the code is one of the upper eight
            levels.x = select_bits(levels.x, permute_bytes(table.z, table.w, lower & 0xffff),
                                   permute_bytes(0, ~0u, upper & 0xffff));
            levels.y = select_bits(levels.y, permute_bytes(table.z, table.w, lower >> 16),
                                   permute_bytes(0, ~0u, upper >> 16));
        }
        return levels;
    }
    uint32_t high = funnel_right(words[1], words[2], 8 * at);
    if (group.bits == 8) return {low, high};  // a code is its level + 128
    const uint8_t* table = tables.many + (group.bits == 5 ? LevelTables::FIVE : 0);
    uint64_t packed = uint64_t(high) << 32 | low;
    uint2 levels = {0, 0};
#pragma unroll
    for (int n = 0; n < ROW_GROUP; n++) {
        uint32_t level = table[packed >> n * group.bits & ((1u << group.bits) - 1)];
        (n < 4 ? levels.x : levels.y) |= level << 8 * (n % 4);
    }
    return levels;
}

// Two of four levels + 128, as E: exact.
template <class E>
__device__ __forceinline__ uint32_t level_pair(uint32_t bytes, int pair) {
    uint32_t selector = pair ? 0x4342 : 0x4140;
    if constexpr (std::is_same_v<E, f16>)  // 1024 + u − 1152
        return subtract2<f16>(permute_bytes(bytes, 0x64646464, selector), 0x64806480);
    // 128 + u % 128, less 128 or, of a negative level, 256
    uint32_t u = permute_bytes(bytes, 0, selector);
    return subtract2<bf16>((u & 0x007f007f) | 0x43004300, (~u & 0x00800080) | 0x43004300);
}

// to (·, stride) ← the first `count` of rows that lie `bytes` apart in shared memory: `elements`
// elements, then the levels of `groups` groups, at most 2^lanes; by `threads` threads of which this
// is number i.
template <class E>
__device__ __forceinline__ void unpack_tile(E* to, int stride, const char* rows, int bytes,
                                            int elements, int groups, int lanes,
                                            const CodeGroup* group, const LevelTables& tables,
                                            int count, int i, int threads) {
    int mine = i & ((1 << lanes) - 1);
    if (mine < groups) {
        const CodeGroup one = group[mine];
        for (int row = i >> lanes; row < count; row += threads >> lanes) {
            uint2 levels = levels_of(tables, one, rows + row * bytes + one.byte);
            uint2 low = {level_pair<E>(levels.x, 0), level_pair<E>(levels.x, 1)};
            uint2 high = {level_pair<E>(levels.y, 0), level_pair<E>(levels.y, 1)};
            E* place = to + row * stride + elements + ROW_GROUP * mine;
            if (elements % 8 == 0) {
                *reinterpret_cast<uint4*>(place) = make_uint4(low.x, low.y, high.x, high.y);
            } else {  // a multiple of 4
                *reinterpret_cast<uint2*>(place) = low;
                *reinterpret_cast<uint2*>(place + 4) = high;
            }
        }
    }
    for (int j = i; j < count * elements; j += threads) {  // at any address
        const char* from = rows + j / elements * bytes + j % elements * int(sizeof(E));
        memcpy(to + j / elements * stride + j % elements, from, sizeof(E));
    }
}

}  // namespace stief
