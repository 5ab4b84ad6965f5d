// Ranks for a budget of bytes (--objective layer; formats of mixed bits: allocation.h): minimise
// Σ_u w_u Δ_u(r_u) subject to Σ_u bytes_u r_u ≤ budget, README.md §5. Greedy on the lower convex
// hulls of the curves, best drop of weighted error a byte first (Everett 1963, Generalized Lagrange
// Multiplier Method): optimal on the hulls whenever the budget is used up, and otherwise within the
// one step that did not fit. The whole path is kept, since measured budgets (perplexity, layer
// error) are found by bisection on it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace stief {

constexpr int RANK_STEP = 4;  // ranks are multiples of it, or the curve's last rank

struct RankPoint {
    int rank;
    double error;  // Δ_u(rank)
};

// One thing that has a rank: the keys or the values of one head, or of a layer.
struct RankUnit {
    std::string name;              // for messages: "layers.3 head 1 keys"
    std::vector<RankPoint> curve;  // measured; ranks ascending from 0
    double weight = 1;             // w_u ≥ 0
    int64_t bytes_per_rank = 0;    // > 0
};

struct GreedyStep {
    int unit;
    int rank;       // of this unit after the step
    int64_t bytes;  // of all units after the step
    double error;   // Σ w Δ on the hulls after the step
};

struct GreedyPath {
    size_t units = 0;
    double error_at_zero = 0;       // Σ w Δ(0), before the first step
    std::vector<GreedyStep> steps;  // from all ranks zero to all ranks full
};

// The lower convex hull of a curve's running minimum (more rank is never worse: what rises is
// noise), at multiples of RANK_STEP and at its last rank. Error where the unit is malformed.
std::vector<RankPoint> lower_hull(const RankUnit& unit);

// Equal drops a byte: the lower rank first, then the lower unit. Steps without any drop come last.
GreedyPath greedy_path(const std::vector<RankUnit>& units);

size_t steps_within(const GreedyPath& path, int64_t budget);  // how many fit; Error if budget < 0
std::vector<int> ranks_after(const GreedyPath& path, size_t steps);  // (units)
std::vector<int> allocate_ranks(const std::vector<RankUnit>& units, int64_t budget);

}  // namespace stief
