// From error curves to ranks: README.md §5, and EigenAttention's thresholds.
#pragma once
#include "calibrate/learned_layer.h"

namespace stief {

using Ranks = std::vector<LayerRanks>;  // (L)

size_t coordinates(const Ranks& ranks);  // of a token over all layers

// Ranks that reach that share of every spectrum (EigenAttention).
Ranks threshold_ranks(const Config& config, const std::vector<LearnedLayer>& layers, double share);

// At most `budget` bytes a token; all zero where not even one rank fits.
Ranks ranks_within(const Config& config, const std::vector<LearnedLayer>& layers,
                   const CalibrationOptions& options, size_t budget);

// The cheapest ranks that hold(ranks), on the greedy path in steps of one rank of one head, or, for
// options.method eigen, by thresholds: 1 − share = 2^(−n/64).
Ranks cheapest_ranks(const Config& config, const std::vector<LearnedLayer>& layers,
                     const CalibrationOptions& options,
                     const std::function<bool(const Ranks&)>& hold);

// Sets the ranks of one layer: the cheapest (eigen: by its thresholds, lowered by 0.02 at a time)
// whose measured √Δ_l on held-out sequences is at most options.error_budget.
void meet_error_budget(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
                       const CalibrationOptions& options);

// The first n in 0 … most with holds(n), where it holds from some n on; most where it never does
// before.
size_t first_that_holds(size_t most, const std::function<bool(size_t)>& holds);

}  // namespace stief
