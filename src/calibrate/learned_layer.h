// What calibration knows of one layer: its bases, how they were found, and what they cost at each
// rank.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "cache/basis.h"
#include "calibrate/output_metric.h"
#include "calibrate/rank_allocation.h"

namespace stief {

struct CalibrationOptions {
    std::string objective = "model";                    // model | layer
    std::string bits = "mixed";                         // mixed | 16: rank alone
    std::string method = "stiefel";                     // stiefel | eigen | identity
    std::string keys = "pre";                           // pre | post | auto (layer)
    bool key_basis_per_layer = false;                   // one basis for all heads' keys
    std::string metric = "output";                      // output | query | identity
    double keep = 0, error_budget = 0, ppl_budget = 0;  // one of them > 0
    int sinks = 4, recent = 64;                         // the exact window
    int tokens = 32768, sequence = 512;                 // learnt on; of one sequence
    int held_out = 8;                                   // sequences for errors and curves
    int measured_windows = 16;   // windows of held-out text for perplexity and KL
    int steps = 0, batch = 6;    // of the descent; sequences a step
    double tau = 0.1;
    uint64_t seed = 1;
    bool resume = false;
    DType cache = DType::F16;
};

// One basis: the keys or the values of one kv head, or the keys of all.
struct BasisUnit {
    bool values = false;
    int first = 0, count = 1;  // kv heads first … first + count − 1
    Metric metric;
    std::vector<double> spectrum;  // (d) of S Σ S, descending
    Matrix warm, Q;                // (d, d) eigenbasis; after descent
};

// ‖Y − Ŷ‖ / ‖Y‖ on held-out sequences, every head cut to one rank on both sides.
struct RankError {
    int rank;
    double warm, learned;
};

struct LearnedLayer {
    bool rotated = false;                           // keys are cut after rotation
    bool kept_warm_k = false, kept_warm_v = false;  // the descent did not beat the warm start
    std::vector<BasisUnit> units;
    std::vector<RankError> errors;             // at d/4 and d/2
    std::vector<std::vector<RankPoint>> k, v;  // (G) Δ of that head alone, held out
    double weight = 1;                         // w_l: KL of the layer alone over its Δ
    std::vector<int> rank_k, rank_v;           // (G) where a budget is the layer's own

    const BasisUnit& unit(bool values, int g) const;
};

// Every head at those ranks; warm: by the eigenbases.
LayerCuts cuts_at(const Config& config, const LearnedLayer& bases, const std::vector<int>& rank_k,
                  const std::vector<int>& rank_v, bool warm = false);
Bases::Layer finished_layer(const Config& config, const LearnedLayer& bases, int l,
                          const std::vector<int>& rank_k, const std::vector<int>& rank_v);

// Metrics and eigenbases: README.md §1. probed: where options.metric is "output".
LearnedLayer warm_start_layer(Model& model, const Moments& moments, const OutputMoments& probed,
                            int l, bool rotated, const CalibrationOptions& options);
// README.md §3. progress(): after every sequence there and back.
void descend(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
             const CalibrationOptions& options, const std::function<void()>& progress);
// Δ_l of those cuts over the held-out sequences.
double held_out_error(LayerPass& pass, const LayerInputs& inputs, int l, const LayerCuts& cuts);
// README.md §4. Curves cost a pass over a sequence for each head, side and rank: with many
// heads fewer sequences must do, each a mean over hundreds of tokens.
size_t curve_sequences(const Config& config, size_t held_out);
void profile(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
             const std::function<void()>& progress);

}  // namespace stief
