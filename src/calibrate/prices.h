// What it costs the model's prediction, in nats a token, to drop or to round a coordinate of a key
// or value: README.md §6. Second order of KL(full ‖ compressed), with errors of different tokens,
// heads and sides taken as uncorrelated:
//
//     KL ≈ ½ Σ_units mean_s (g_s · e_s)²,   e_s = k̃_s − k_s,  g_s of model_backward.h
//
// so that coordinate i of c = k E costs, from samples of g and c together (their factors' product
// misjudges whole layers),
//
//     dropped     a_i = ½ mean_s (g_s · D_i)² c_si²
//     unit noise  n_i = ½ mean_s (g_s · D_i)² ρ_s² σ_i²     ρ_s² the row's energy over its mean
//
// and prices compare across layers, heads, keys and values.
#pragma once
#include "calibrate/allocation.h"
#include "calibrate/model_backward.h"

namespace stief {

// Keys or values of every head of every layer and their gradients, token by token; the first
// tokens of a sequence, which the cache keeps exactly, are left out.
struct PriceSamples {
    size_t units, tokens, d;
    Activations data;  // (units, 2, tokens, d)  k, then g

    PriceSamples(const Config& config, size_t tokens, const std::string& folder);
    float* k(size_t unit) const { return data.data + unit * 2 * tokens * d; }
    float* g(size_t unit) const { return k(unit) + tokens * d; }
};
inline size_t unit_of(const Config& c, int l, int g, bool values) {
    return (size_t(l) * size_t(c.G) + size_t(g)) * 2 + values;
}

// One way back through the model for each sequence, at these cuts.
void collect_samples(ModelBackward& model, const Sequences& sequences, PriceSamples& samples,
                     const std::vector<LayerCuts>& cuts, int sinks, uint64_t seed,
                     const std::function<void()>& progress);

enum class Covariance { Weighted, Plain };  // C = Σ ‖g‖² kᵀk | Σ kᵀk

struct Pricing {
    Covariance covariance = Covariance::Weighted;
    bool coded = true;  // coordinates are rounded to few bits; else stored as elements or dropped
};

// One head's keys or values in its basis: coordinates of unit spread, the most dearly priced first:
// by noise where they are coded, else by what dropping them costs.
struct PricedUnit {
    Pricing how;
    Matrix Q;                            // (d, d)
    std::vector<float> encode, decode;   // (d, d)  E = S Q / σ, D = σ Qᵀ S⁻¹
    std::vector<double> dropped, noise;  // (d)  a_i, n_i in nats a token
};

// The basis: eigenvectors of S C S with S² = Σ gᵀg.
PricedUnit price_unit(const PriceSamples& samples, size_t unit, const Pricing& how);
// The same unit's prices by other samples, in the basis that it has.
void price_again(PricedUnit& priced, const PriceSamples& samples, size_t unit);

// Every format on the unit's own greedy path from nothing to whole rows, priced by what the
// quantiser does to the unit's rows; where nothing is coded, every rank in steps of 4.
Choices formats_of(const PricedUnit& unit, const PriceSamples& samples, size_t index, DType dtype);
// ½ mean_s (g_s · e_s)² of the unit's rows through pack and unpack.
double price_of(const PricedUnit& unit, const PriceSamples& samples, size_t index,
                const RowFormat& format, DType dtype);

// What an error in each stored coordinate costs, relative to the dearest: pack_row's weight.
std::vector<float> weights_of(const PricedUnit& unit);
Cut cut_of(const PricedUnit& unit, const RowFormat& format);

}  // namespace stief
