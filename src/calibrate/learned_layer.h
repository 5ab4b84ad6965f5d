// What calibration knows of one layer: its bases, how they were found, and what they cost at each
// rank.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "cache/basis.h"
#include "calibrate/allocation.h"
#include "calibrate/output_metric.h"

namespace stief {

struct CalibrationOptions {
    std::string objective = "model";                    // model | layer
    std::string bits = "mixed";                         // mixed | 16: rank alone
    std::string method = "stiefel";                     // stiefel | eigen | identity (layer) | star (model)
    std::string keys = "pre";                           // pre | post | auto (layer)
    bool key_basis_per_layer = false;                   // one basis for all heads' keys
    bool joint_values = false;                          // model: one for the values of a layer
    std::string metric = "output";                      // output | query | identity
    double keep = 0, error_budget = 0, ppl_budget = 0;  // one of them > 0
    int sinks = 4, recent = 64;                         // the whole window
    std::vector<int> ages;        // mixed bits: where each age but the last ends, after recent
    std::vector<double> age_bits;  // (ages)  bits an element of each; of the last: keep
    int tokens = 32768, sequence = 512;                 // learnt on; of one sequence
    int64_t least_advised = 0;    // a shorter sequence would have another window, and be too short for it
    int held_out = 8;                                   // sequences for errors and curves
    int measured_windows = 16;   // windows of held-out text for perplexity and KL
    int steps = 0, batch = 6;    // of the descent; sequences a step
    double tau = 0.1;
    uint64_t seed = 1;
    bool resume = false;
    bool compares = true;         // measures other sizes and other methods beside the result
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

// Δ of one head's keys or values alone against their rank, on held-out sequences.
using Curves = std::vector<std::vector<RankPoint>>;  // (G)

// Ranks of the keys and values of each kv head of one layer.
struct LayerRanks {
    std::vector<int> k, v;  // (G)

    static LayerRanks all(const Config& config, int k, int v) {
        return {std::vector<int>(size_t(config.G), k), std::vector<int>(size_t(config.G), v)};
    }
    int at(bool values, int g) const { return (values ? v : k)[size_t(g)]; }
};

enum class Which { Warm, Learned, Best };  // Best: at its ranks each unit's better one, see best()

struct LearnedLayer {
    bool rotated = false;       // keys are cut after rotation
    bool descended = false;     // learned bases differ from the warm ones and have curves
    bool kept_warm = false;     // all of them together did not beat the warm start
    DType cache = DType::F16;   // of the elements that are kept
    std::vector<BasisUnit> units;
    std::vector<RankError> errors;  // at d/4 and d/2
    Curves warm_k, warm_v, k, v;    // by the eigenbases; by the learned bases
    double weight = 1;              // w_l: KL of the layer alone over its Δ
    LayerRanks ranks;               // where a budget is the layer's own

    const BasisUnit& unit(bool values, int g) const;
    // Of a unit at these ranks, by its heads' curves: the learned basis where it is better, else
    // the eigenbasis. So no rank is worse for the descent.
    const Matrix& best(const BasisUnit& unit, const LayerRanks& ranks) const;
    // The lower of both curves.
    std::vector<RankPoint> curve(bool values, int g) const;
    double error_of(bool values, int g, const LayerRanks& at) const;  // Δ by that curve
};

LayerCuts cuts_at(const Config& config, const LearnedLayer& bases, const LayerRanks& ranks,
                  Which which);
// Which::Best, but for kept_warm.
Bases::Layer finished_layer(const Config& config, const LearnedLayer& bases, int l,
                            const LayerRanks& ranks);

// Metrics and eigenbases: README.md §1. probed: where options.metric is "output".
LearnedLayer warm_start_layer(Model& model, const Moments& moments, const OutputMoments& probed,
                            int l, bool rotated, const CalibrationOptions& options);
// README.md §3 at these ranks and near them. progress(): after every sequence there and back.
void descend(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
             const LayerRanks& ranks, const CalibrationOptions& options,
             const std::function<void()>& progress);
// Δ_l of those cuts over the held-out sequences.
double held_out_error(LayerPass& pass, const LayerInputs& inputs, int l, const LayerCuts& cuts);
// README.md §4. Curves cost a pass over a sequence for each head, side and rank: with many
// heads fewer sequences must do, each a mean over hundreds of tokens.
size_t curve_sequences(const Config& config, size_t held_out);
// Curves by the eigenbases, or, once descended, by the learned bases, and the errors of both.
void profile(LayerPass& pass, const LayerInputs& inputs, LearnedLayer& bases, int l,
             const std::function<void()>& progress);

}  // namespace stief
