// From error curves to ranks: README.md §5, and EigenAttention's thresholds.
#pragma once
#include "calibrate/learned_layer.h"

namespace stief {

struct Ranks {
    std::vector<std::vector<int>> k, v;  // (L, G)
    size_t coordinates() const;          // of a token over all layers
};

// The greedy path of all heads of layers, weighted; ranks_of turns a point of it into ranks.
GreedyPath path_of(const Config& config, const std::vector<LearnedLayer>& layers, DType cache);
Ranks ranks_of(const Config& config, const GreedyPath& path, size_t steps);

// Ranks that reach that share of every spectrum (EigenAttention).
Ranks threshold_ranks(const Config& config, const std::vector<LearnedLayer>& layers, double share);

// At most `budget` bytes a token; all zero where not even one rank fits.
Ranks ranks_within(const Config& config, const std::vector<LearnedLayer>& layers,
                   const CalibrationOptions& options, size_t budget);

// Sets rank_k and rank_v of one layer: the cheapest on its path (eigen: by its thresholds, lowered
// by 0.02 at a time) whose measured √Δ_l on held-out sequences is at most options.error_budget.
void meet_error_budget(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
                       const CalibrationOptions& options);

// The first n in 0 … most with holds(n), where it holds from some n on; most where it never does
// before.
size_t first_that_holds(size_t most, const std::function<bool(size_t)>& holds);

}  // namespace stief
