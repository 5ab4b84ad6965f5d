// A row's format as the inner loops want it: made once for each format and dtype, read by every
// pack and unpack. Plain members only: the kernels' files may call no inline function of a header.
//
// Three ways through the codes of many rows at once. Without a branch for the width, four rows in two
// registers of 64 bytes, 16 codes of each at a time:
//   windows   a piece of the rows and the codes that lie in it; 16 codes become a lane of 128
//             bits, a byte each, a row a lane
//   blocks    the same piece; a code of four rows becomes 32 bits, a byte of each row
// A piece is 32 bytes of a row; rows that are no longer are read as they lie (`close`), two and what
// follows. A permutation of bytes (spread; of windows that of the first row, to which `lanes` adds)
// brings the bytes of some codes into each 64 bits, a shift for every byte (shift: the bit at which it
// begins) aligns them and a mask cuts them off.
// With `base` added a code is an index of Levels::biased, looked up where `lookup` has a bit for the
// byte; a code of 8 bits is its own biased level. For processors that look up 16 bytes at most:
//   couples   16 bytes of a row, a group in either lane of 128 bits; each word gets the two bytes
//             that hold its code, times 2^(16 − b − bit) moves the code to its upper end (up), and
//             the upper half of times 2^b to its lower (down). Looked up is how far the level is
//             above the least, in tables of 16: the kth has what 16 codes more add, for codes from
//             16 k on. Couples of as many tables follow one another; of 8 bits there are none,
//             and such a group has no other beside it.
#pragma once
#include <vector>

#include "backend/row_format.h"

namespace stief {

struct RowLayout {
    static constexpr int MOST = MOST_KEPT;   // coordinates kept
    static constexpr int FILL = 16;          // tables of coordinates are filled to multiples

    static constexpr uint8_t N = 0x80;       // a shuffle's index of nothing

    struct Group {                           // 8 codes
        uint32_t offset;                     // bytes from the row's begin
        int bits;
        float step, distortion;              // Δ_b, D_b
        const float* level;                  // (2^b, at least 8)
    };

    struct Window {
        uint32_t offset;
        int first, end;                      // sixteens whose bytes lie in it
    };
    struct alignas(16) Sixteen {             // 16 codes, at the end perhaps 8
        uint8_t spread[16], shift[16], mask[16], base[16];
        uint64_t lookup;                     // of all four lanes
    };
    struct alignas(64) Block {
        uint8_t spread[2][64], shift[2][64], mask[2][64], base[2][64];
        uint64_t lookup[2];
        uint32_t offset;
        int first, sixteens;                 // its first code, and how many times 16 from there
    };

    struct Widths {                          // of 64 codes
        struct {
            const uint8_t* size;             // (256): Levels::size
            uint64_t mask;                   // codes in the order of four registers packed to bytes
        } one[RowFormat::WIDTHS];
        int count;
        uint64_t eight;                      // codes of 8 bits, whose lowest level has no opposite
    };

    struct alignas(32) Couple {
        uint8_t spread[32];
        uint16_t up[16], down[16];
        int16_t least[16];                   // levels
        uint8_t level[4][32];
        uint32_t offset;
        int first, codes, tables;            // 8 or 16 codes from `first` on; 0, 4, 2 or 1 tables
    };

    RowFormat format;
    DType dtype;
    size_t bytes;                            // of a row; rows lie at multiples
    int kept, whole, codes, groups;          // kept = whole + codes, codes = 8 groups
    bool close;
    alignas(64) uint8_t lanes[64];           // where a register pair has the row of each lane
    int windows, blocks;
    int scale_at;                            // in the last window, which has the scale
    const Group* group;                      // (groups)
    const Window* window;                    // (windows)
    const Sixteen* sixteen;                  // (groups / 2, rounded up)
    const Block* block;                      // (blocks)
    const Widths* widths;                    // (codes / 64, rounded up)
    int couples;
    const Couple* couple;                    // (couples)
    // (codes, filled to FILL with steps of 1)
    const float* step;                       // Δ_b
    const float* cell;                       // δ_b
    const float* halves;                     // 2 / δ_b
    const float* middle;                     // where nearest has what is next above zero
    // Nearest levels of x by middle + ⌊2x / δ_b⌋, and their codes; −256 ≤ ⌊ ⌋ < 256
    const float* nearest;
    const uint8_t* nearest_code;
    const float* rho;                        // (257): ρ(s) = 2^((s − 128) / 8) = 1 / ρ(256 − s)

    RowLayout(const RowFormat& format, DType dtype);   // error where more than MOST are kept
    RowLayout(RowLayout&&) = default;

  private:
    std::vector<Group> all_groups;
    std::vector<Window> all_windows;
    std::vector<Sixteen> all_sixteens;
    std::vector<Block> all_blocks;
    std::vector<Widths> all_widths;
    std::vector<Couple> all_couples;
    std::vector<float> coordinates;          // step, cell, halves, middle

    void make_windows();
    void make_blocks();
    void make_widths();
    void make_couples();
};

}  // namespace stief
