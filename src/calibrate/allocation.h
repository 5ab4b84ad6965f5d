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

// For each unit which of its hull's choices, at most `budget` bytes in all (fewer where the first
// choices alone do not fit: then those). Equal drops: the lower unit first.
std::vector<size_t> choose_within(const std::vector<Choices>& hulls, size_t budget);

}  // namespace stief
