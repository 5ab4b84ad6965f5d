// Rows of codes on their way to tensor cores: taken apart in registers, the eight codes of a group by
// one lane, into integers of 8 bits in bf16 or f16, which both hold exactly (calibrate/README.md §8).
// Steps and scales stay outside: attention has them in its queries and weights.
#pragma once
#include "coded_rows.cuh"

namespace stief {

// Eight codes of a row: where they are, and what they count.
struct alignas(16) CodeGroup {
    int byte, bits;  // from the row's first byte
    float step, by_step;  // Δ_b, 1 / Δ_b

    __device__ static CodeGroup of(const RowFormat& format, int element, int group) {
        CodePlace at(format, element, int(format.count[0]) + ROW_GROUP * group);
        return {at.byte, bits_of(at.w), step_of(at.w), unit_of<Unit::PerStep>(at.w)};
    }
};

// Levels + 128, a byte each, by code. Shared memory: no lookup in `many` has a conflict of banks, as
// all of it is no more than one byte line of them.
struct alignas(16) LevelTables {
    // Of 0 to 4 bits what registers hold of them, x and y: of codes 0 … 7, again and again where
    // there are fewer; of 4 bits those of codes 8 … 15, and in z and w what they have more than
    // codes 0 … 7. No bits: level 0.
    uint4 few[5];
    uint8_t many[96];  // of 6 bits, then of 5
    static constexpr int FIVE = 64, BYTES = 5 * 16 + 96;
    static_assert(Levels::biased_at(6) == 0 && Levels::biased_at(5) == FIVE);

    __device__ void fill(int i, int threads) {
        uint8_t* to = reinterpret_cast<uint8_t*>(this);
        for (; i < BYTES; i += threads)
            to[i] = i < 80 ? few_at(i / 16, i % 16) : DEVICE_LEVELS.biased[i - 80];
    }

private:
    __device__ static uint8_t few_at(int bits, int at) {
        const uint8_t* biased = DEVICE_LEVELS.biased + Levels::biased_at(bits);
        if (bits == 4) return at < 8 ? biased[8 + at] : uint8_t(biased[at] - biased[at - 8]);
        if (at >= 8) return 0;
        return bits ? biased[at & ((1 << bits) - 1)] : uint8_t(Levels::BIAS);
    }
};
static_assert(sizeof(LevelTables) == LevelTables::BYTES);

// What codes of b ≤ 4 bits are moved apart by, to have a nibble each.
struct Gaps {
    uint32_t by = 0, by2 = 0, by4 = 0;  // 2^(4 − b), its square, its fourth power
    Gaps() = default;
    __device__ explicit Gaps(int bits) : by(1u << (4 - bits)), by2(by * by), by4(by2 * by2) {}
};
// The first eight codes of `packed`, one in the low bits of each nibble; its others are anything.
// Halves, bytes, nibbles: each time the upper ones move up, by products, as the units that shift have
// more to do.
__device__ __forceinline__ uint32_t nibbles_of(uint32_t packed, const Gaps& gaps) {
    uint32_t x = select_bits(packed, packed * gaps.by4, 0xffff0000);
    x = select_bits(x, x * gaps.by2, 0xff00ff00);
    return select_bits(x, x * gaps.by, 0xf0f0f0f0);
}

// Levels + 128 of eight such codes, table: `few` of their bits. FOUR: there may be 4 of them. Where a
// code is below 8, z and w have what is to be taken off, less than 128: of the codes from 8 on
// permute_bytes takes that sign, 0. No byte borrows.
template <bool FOUR>
__device__ __forceinline__ uint2 levels_of_nibbles(const uint4& table, uint32_t x) {
    uint32_t low = x & 0x77777777, y = x >> 16;
    uint2 levels = {permute_bytes(table.x, table.y, low), permute_bytes(table.x, table.y, low >> 16)};
    if constexpr (FOUR) {
        levels.x -= permute_bytes(table.z, table.w, x);
        levels.y -= permute_bytes(table.z, table.w, y);
    }
    return levels;
}

// Levels + 128 of the first four codes of 5 or 6 bits.
__device__ __forceinline__ uint32_t levels_of_many(const LevelTables& tables, uint32_t packed,
                                                   int bits) {
    const uint8_t* table = tables.many + (bits == 5 ? LevelTables::FIVE : 0);
    uint32_t mask = (1u << bits) - 1, levels = 0;
#pragma unroll
    for (int n = 0; n < 4; n++) levels |= uint32_t(table[packed >> n * bits & mask]) << 8 * n;
    return levels;
}

// The group's eight levels + 128, a byte each. from: shared, any address; the words that the bytes
// lie in are read, and the one after them.
__device__ __forceinline__ uint2 levels_of(const LevelTables& tables, const CodeGroup& group,
                                           const char* from) {
    unsigned at = unsigned(reinterpret_cast<uintptr_t>(from) % 4);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(from - at);
    uint32_t low = funnel_right(words[0], words[1], 8 * at);
    if (group.bits <= 4)
        return levels_of_nibbles<true>(tables.few[group.bits],
                                       nibbles_of(low, Gaps(group.bits)));
    uint32_t high = funnel_right(words[1], words[2], 8 * at);
    if (group.bits == 8) return {low, high};  // a code is its level + 128
    return {levels_of_many(tables, low, group.bits),
            levels_of_many(tables, funnel_right(low, high, unsigned(4 * group.bits)), group.bits)};
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
