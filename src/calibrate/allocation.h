// Formats for a budget of bytes: minimise Σ_u error_u subject to Σ_u bytes_u ≤ budget, where every
// unit (the keys or the values of one head) has a list of choices. Greedy on the lower convex hulls
// of the lists, best drop of error a byte first (Everett 1963, Generalized Lagrange Multiplier
// Method): optimal on the hulls whenever the budget is used up, and otherwise within the one step
// that did not fit.
#pragma once
#include <cstddef>
#include <vector>

#include "backend/row_format.h"

namespace stief {

// One way to store a unit's rows.
struct Choice {
    size_t bytes;  // of a row
    double error;
    RowFormat format;
};
using Choices = std::vector<Choice>;  // bytes ascending, the first the least there is

// The lower convex hull: each step to the next has a smaller drop of error a byte than the one
// before, and every drop is positive. Error where an error is not finite.
Choices lower_hull(const Choices& choices);

// Error against rank: an element for each coordinate that is kept and no codes.
constexpr int RANK_STEP = 4;  // ranks are multiples of it, or the last one of the curve
struct RankPoint {
    int rank;
    double error;  // Δ(rank)
};
// Every rank of a unit by its measured curve: the lower convex hull of its running minimum (more
// rank is never worse: what rises is noise), at multiples of RANK_STEP and at its last rank.
// Errors times weight. Error where an error is not finite or ranks do not ascend from 0.
Choices rank_choices(const std::vector<RankPoint>& curve, double weight, DType dtype);

// For each unit which of its hull's choices, at most `budget` bytes in all; where the first choices
// alone are more than that, these. Equal drops: the unit that has fewer bytes first, then the
// lower one.
std::vector<size_t> choose_within(const std::vector<Choices>& hulls, size_t budget);

}  // namespace stief
