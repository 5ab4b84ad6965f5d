// What append writes and attention reads of one layer: rows by head, each head's of one format or
// of several, and which of them a token sees. All of it is plain data, the same for every backend.
#pragma once
#include <algorithm>
#include <climits>
#include <vector>

#include "backend/row_format.h"

namespace stief {

constexpr int MOST_STORES = 6;    // of a head: the whole window and up to five formats by age
constexpr int MATRIX_SLACK = 64;  // floats that a kernel may read beyond a head's matrix

// Rows of one format, `bytes` apart. The row of position s lies at s, or, where there is a ring,
// at s for the first `fixed` positions and at fixed + (s − fixed) % ring for the others.
struct RowStore {
    void* data = nullptr;  // null: these rows are not kept, nobody sees them
    RowFormat format;
    int bytes = 0;
    int fixed = 0, ring = 0;

    int slots(int positions) const { return ring ? std::min(positions, fixed + ring) : positions; }
};

// One kv head's keys or values: latent coordinates c = (k − μ) E, packed into every store at once. Rows
// of all stores come from the same c: packing a row again later would lose more. Keys after rotation
// lose μ as it is turned to their position, R_s μ, but for whole rows of d elements, which are k E.
// Where the values of a layer are joint, the stores of all heads are the same rows, of up to G·d
// coordinates; encode and weight are the first head's, (G·d, G·d) and (G·d), and decode is each head's own,
// (G·d, d).
struct CacheRows {
    RowStore store[MOST_STORES];
    int width = 0;                    // coordinates kept by the widest of them
    const float* encode = nullptr;    // (d, d) E; null: the identity, as are decode and decode_t
    const float* decode = nullptr;    // (d, d) D = E⁻¹
    const float* decode_t = nullptr;  // (d, d) Dᵀ          (MATRIX_SLACK)
    const float* weight = nullptr;    // (d)    of pack_row; null: 1
    const float* mean = nullptr;      // (d)    μ of keys, as before rotation; null: 0
};

// Tokens at p see the positions s of first … end − 1 with lo ≤ p − s < hi in these stores.
struct Stretch {
    int first = 0, end = INT_MAX;
    int lo = 0, hi = INT_MAX;
    int k = 0, v = 0;

    // The positions that any of the tokens at pos … last sees.
    constexpr int begin_for(int pos) const { return first > pos - hi + 1 ? first : pos - hi + 1; }
    constexpr int end_for(int last) const { return end < last - lo + 1 ? end : last - lo + 1; }
    constexpr bool lies_like(const Stretch& other) const { return k == other.k && v == other.v; }
};

// All that the query heads of one kv head see: every position s ≤ p once. For one token the
// stretches are in the order of positions; those of sinks, if any, come first.
//
// With a window of 4,32 and an age of 256 there are three stores, 0 of whole rows, 1 of the age's and 2
// of what is beyond, and four stretches:
//     s < 4, any distance | s ≥ 4, p − s ≥ 256 | s ≥ 4, 32 ≤ p − s < 256 | s ≥ 4, p − s < 32
//     in store 0          | 2                  | 1                       | 0
// Rows of one format are kept once, in the oldest store that has it. Where a head's age is whole, too,
// its store 0 is kept in 1: the first stretch reads the fixed rows of that ring, of 256 and a batch, and
// the last two are one. Keys and values of a head differ in this: a stretch has a store of each.
struct Seen {
    int count = 0;
    Stretch stretch[MOST_STORES + 1];

    const Stretch* begin() const { return stretch; }
    const Stretch* end() const { return stretch + count; }
    // The one without an end and at any distance: what is seen of nearly all positions.
    constexpr const Stretch& oldest() const { return stretch[stretch[0].end < INT_MAX]; }
    static Seen all_of(int store) {
        Seen seen;
        seen.count = 1, seen.stretch[0].k = seen.stretch[0].v = store;
        return seen;
    }
};

struct CacheLayer {
    DType dtype = DType::F16;      // of whole elements
    int capacity = 0;              // positions that fit
    int H = 0, G = 0, d = 0;
    int values_width() const { return joint ? joint : d; }  // coordinates of a whole row of values
    // Whether rows of that head's values are those of the first head.
    bool shares_rows(size_t g) const { return joint && g > 0; }
    // Whether keys are stored less R_s μ where not all d are elements: attention adds q · R_s μ to their
    // scores.
    bool less_turned_mean(size_t g) const { return rotated && k[g].mean; }
    std::vector<CacheRows> k, v;   // (G)
    std::vector<Seen> seen;        // (G)
    int joint = 0;                 // G·d where values are joint: one row a token, for all heads
    bool rotated = true;           // keys are stored after rotation ("post"); else before ("pre")
    int batch = 0;                 // tokens of one append at most, or taken back; 0: any
    const CacheRows* rows = nullptr;     // (2, G)  k, then v once more, in the backend's memory
    const Seen* seen_rows = nullptr;     // (G)  likewise
};

}  // namespace stief
