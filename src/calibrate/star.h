// Ranks by learned thresholds: STAR-KV (Bhatnagar et al. 2026, arXiv 2606.08382), README.md §9.
//
//     gate(x) = tanh(s (x − α)) for x > α, else 0        s = 50
//     minimise KL(full ‖ gated) + γ Σ_α e^−α             γ = 0.1, steered to a budget of bytes
//
// x is a coordinate's singular value over the mean of those that share its α: the spread of the
// activations in their eigenbasis. There is an α for each key head and one for each layer's values.
// In the end gates are ranks: what is kept is kept whole. The model's weights stay as they are; the
// paper trains them along, and decomposes them rather than the activations.
#pragma once
#include "calibrate/model_backward.h"
#include "calibrate/prices.h"
#include "calibrate/units.h"

namespace stief {

struct StarGate {
    double value, by_alpha;  // gate(x), ∂gate/∂α
};
StarGate star_gate(double x, double alpha);

// r coordinates as the paper's quantiser stores them: the first fifth in codes of 4 bits, the others
// in 3, both in multiples of ROW_GROUP; not coded: r elements.
RowFormat star_format(int r, bool coded);

struct Star {
    Units units;
    bool coded;                          // ranks in steps of ROW_GROUP, for codes; else RANK_STEP
    std::vector<PricedUnit> unit;        // eigenbases, no metric
    std::vector<std::vector<double>> x;  // (units, width)  descending
    std::vector<double> alpha;           // (L, G + 1)  of each key head; of the layer's values

    // moment: (units)  mean kᵀk, (width, width). Thresholds are 0.
    Star(const Units& of, std::vector<Matrix> moment, bool with_codes);

    // Every threshold where that share of its coordinates is above it.
    void start_at(double share);
    // The largest α at which the units of each still keep a step of ranks: a gate that is closed has
    // no gradient to open again.
    std::vector<double> limits() const;
    size_t threshold_of(size_t u) const;                // which α
    std::vector<double> gates(size_t u) const;          // (width)
    Cut gated_cut(size_t u) const;                      // k̃ = Σ_i gate_i c_i D_i
    std::vector<LayerCuts> gated_cuts(const Config& config, bool rotated, int sinks,
                                      DType dtype) const;
    // gradient (alpha) += Σ ∂KL/∂gate ∂gate/∂α from c̃ᵀ ∂KL/∂k̃ of a unit cut by gated_cut.
    void add_gradient(std::vector<double>& gradient, size_t u, const Matrix& of_stored) const;
    size_t bytes(DType dtype) const;  // of a token, with every gate above 0 a coordinate
    // Hard ranks, at most `budget` bytes a token in all: groups of coordinates by x − α, the largest
    // first, as if all thresholds moved by one amount to meet it.
    std::vector<RowFormat> formats_within(size_t budget, DType dtype) const;
    // The unit as it is stored: with codes each of both blocks is rotated within itself.
    PricedUnit stored(size_t u, const RowFormat& format) const;
};

}  // namespace stief
