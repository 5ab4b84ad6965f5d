// Rows of codes as decode takes them apart: in registers, a group of eight codes by one lane.
//
// A group's column of the cache is a slot: slot j of a row has coordinates elements + 8 j … + 7.
// All lanes of a warp do the same, whatever their slots' widths:
//   up to 4 bits   what codes are moved apart by, and the table of their levels, are the slot's:
//                  three paths, for slots that have 3 bits at most, 4, or any
//   5, 6 bits      widened to 8 ahead of it, with every lane at work (a table in shared memory)
//   8 bits         a choice between two results: a code is level + 128
#pragma once
#include "attention_tensor.cuh"

namespace stief {

// What the slots of four keys', or of eight values' have at most: 3 bits, 4, or 8.
enum class Widths { Three, Four, Any };

// f<W>() of the widths that come, the same for a warp.
template <class F>
__device__ __forceinline__ void with_widths(Widths widths, const F& f) {
    if (widths == Widths::Three)
        f.template operator()<Widths::Three>();
    else if (widths == Widths::Four)
        f.template operator()<Widths::Four>();
    else
        f.template operator()<Widths::Any>();
}

// How a lane takes a group apart.
struct alignas(16) CodeSlot {
    int byte;     // from the row's first; of widened groups −1 − that from their first row's
    Gaps gaps;    // of nibbles_of; all 0: 8 bits
    uint4 table;  // LevelTables::few; of no codes level 0
    float step, by_step;  // Δ_b, 1 / Δ_b; 1 where there are no codes
};

constexpr int CODED_STEP = 32;  // keys that a warp takes at once, at most, where rows are codes

// Groups of 5 and 6 bits, widened: those of a step lie group after group.
constexpr int WIDENED = CODED_STEP * ROW_GROUP;  // bytes of one
__host__ __device__ inline int groups_to_widen(const RowFormat& format) {
    return (int(format.count[2]) + int(format.count[3])) / ROW_GROUP;
}

// The slots of a stretch, of its keys and of its values, in shared memory.
template <int D>
struct CodeSlots {
    static constexpr int SLOTS = D / ROW_GROUP;
    CodeSlot slot[2][SLOTS];
    Widths keys[SLOTS / 4], values[SLOTS / 8];
    int wide[2], first_wide[2];  // groups to be widened, and the first of them

    // By a warp, which sees the tables; a barrier must follow.
    __device__ void fill(const RowStore& k, const RowStore& v, const LevelTables& levels,
                         int element) {
        int i = int(threadIdx.x) % WARP;
        if (i < 2) {
            const RowFormat& format = i ? v.format : k.format;
            wide[i] = groups_to_widen(format), first_wide[i] = first_of_wide(format);
        }
        for (; i < 2 * SLOTS; i += WARP) {
            int side = i / SLOTS, j = i % SLOTS;
            const RowFormat& format = side ? v.format : k.format;
            CodeGroup group = {0, 0, 1, 1};
            if (j < groups_of(format)) group = CodeGroup::of(format, element, j);
            Widths widest = group.bits <= 3   ? Widths::Three
                            : group.bits == 4 ? Widths::Four
                                              : Widths::Any;
            // The first of some is the widest.
            if (side == 0 && j % 4 == 0) keys[j / 4] = widest;
            if (side == 1 && j % 8 == 0) values[j / 8] = widest;
            bool to_widen = group.bits == 5 || group.bits == 6;
            slot[side][j].byte = to_widen ? -1 - (j - first_of_wide(format)) * WIDENED : group.byte;
            slot[side][j].gaps = group.bits <= 4 ? Gaps(group.bits) : Gaps{};
            slot[side][j].table = levels.few[group.bits <= 4 ? group.bits : 0];
            slot[side][j].step = group.step, slot[side][j].by_step = group.by_step;
        }
    }
    __device__ static int first_of_wide(const RowFormat& format) {
        return int(format.count[1]) / ROW_GROUP;
    }
};

// The keys' or the values' rows of a step, in a warp's own shared memory.
struct CodeRows {
    const char* memory;    // aligned to 4 bytes
    unsigned first, wide;  // from there to the first row, to the widened groups
    unsigned bytes;        // of a row

    template <class E>
    __device__ __forceinline__ E element(int row, int j) const {  // at any address
        E one;
        memcpy(&one, memory + first + unsigned(row) * bytes + unsigned(j) * sizeof(E), sizeof(E));
        return one;
    }
    // x[i] ← log₂ ρ of row `row` + 8 i.
    template <int N>
    __device__ __forceinline__ void log2_scales(float (&x)[N], int row) const {
        const char* at = memory + first + unsigned(row + 1) * bytes - 1;
#pragma unroll
        for (int i = 0; i < N; i++, at += 8 * bytes) x[i] = log2_scale_of(uint8_t(*at));
    }
    // Where the groups of a row and of every eighth behind it are: they lie alike in their words, `on`
    // bytes apart.
    struct Place {
        const char* words;
        uint32_t shift;
        unsigned on;
        // The bits of the next: of up to 4 bits in the lower word.
        template <Widths W>
        __device__ __forceinline__ uint2 next() {
            const uint32_t* from = reinterpret_cast<const uint32_t*>(words);
            words += on;
            return {funnel_right(from[0], from[1], shift),
                    W == Widths::Any ? funnel_right(from[1], from[2], shift) : 0};
        }
    };
    template <Widths W>
    __device__ __forceinline__ Place place(const CodeSlot& slot, int row) const {
        unsigned at = first + unsigned(slot.byte), each = bytes;
        if (W == Widths::Any && slot.byte < 0)
            at = wide + unsigned(-1 - slot.byte), each = ROW_GROUP;
        at += unsigned(row) * each;
        return {memory + (at & ~3u), 8 * at, 8 * each};
    }
    // Of 16 T rows the groups of 5 and 6 bits, to where `wide` says, by a warp: half a group of a
    // row by a lane.
    template <int T>
    __device__ __forceinline__ void widen(char* to, const CodeGroup* group, int count,
                                          const LevelTables& tables, int lane) const {
        int row = lane / 2, half = lane % 2;
        to += ROW_GROUP * row + 4 * half;
#pragma unroll 1
        for (int i = 0; i < count; i++, group++, to += WIDENED) {
            int bits = group->bits;
            unsigned at = 8 * (first + unsigned(row) * bytes + unsigned(group->byte));
            at += unsigned(4 * bits * half);
#pragma unroll
            for (int k = 0; k < T; k++, at += 8 * 16 * bytes) {
                const uint32_t* words = reinterpret_cast<const uint32_t*>(memory + at / 32 * 4);
                *reinterpret_cast<uint32_t*>(to + 16 * ROW_GROUP * k) =
                    levels_of_many(tables, funnel_right(words[0], words[1], at), bits);
            }
        }
    }
};

// Levels + 128 of the eight codes of a group, a byte each.
template <Widths W>
__device__ __forceinline__ uint2 levels_of(const CodeSlot& slot, const uint2& bits) {
    uint2 u = levels_of_nibbles<W != Widths::Three>(slot.table, nibbles_of(bits.x, slot.gaps));
    if constexpr (W != Widths::Any) return u;
    bool eight = slot.gaps.by == 0;  // whose code is level + 128
    return {eight ? bits.x : u.x, eight ? bits.y : u.y};
}
// The same of two keys' groups: u[m] ← codes 2m, 2m + 1 of the first, and of the second.
template <Widths W>
__device__ __forceinline__ void levels_of_two(uint32_t (&u)[4], const CodeSlot& slot,
                                              const uint2& one, const uint2& other) {
    if constexpr (W == Widths::Any) {
        uint2 x = levels_of<W>(slot, one), y = levels_of<W>(slot, other);
        u[0] = permute_bytes(x.x, y.x, 0x5410), u[1] = permute_bytes(x.x, y.x, 0x7632);
        u[2] = permute_bytes(x.y, y.y, 0x5410), u[3] = permute_bytes(x.y, y.y, 0x7632);
    } else {  // in this order before they are looked up: fewer to move
        uint32_t x = nibbles_of(one.x, slot.gaps), y = nibbles_of(other.x, slot.gaps);
        uint2 low = levels_of_nibbles<W == Widths::Four>(slot.table, permute_bytes(x, y, 0x5140));
        uint2 high = levels_of_nibbles<W == Widths::Four>(slot.table, permute_bytes(x, y, 0x7362));
        u[0] = low.x, u[1] = low.y, u[2] = high.x, u[3] = high.y;
    }
}

}  // namespace stief
