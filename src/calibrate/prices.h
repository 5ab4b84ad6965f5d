// What it costs the model's prediction, in nats a token, to drop or to round a coordinate of a key
// or value: README.md §6. Second order of KL(full ‖ compressed), with errors of different tokens,
// heads and sides taken as uncorrelated:
//
//     KL ≈ ½ Σ_units mean_s (g_s · e_s)²,   e_s = k̃_s − k_s,  g_s of price_samples.h
//
// so that coordinate i of c = k E costs, from samples of g and c together (their factors' product
// misjudges whole layers),
//
//     dropped     a_i = ½ mean_s (g_s · D_i)² c_si²
//     unit noise  n_i = ½ mean_s (g_s · D_i)² ρ_s²     ρ_s² the row's energy over its mean; D_i has σ_i
//
// and prices compare across layers, heads, keys and values. Each age has prices of its own: those of
// the queries that find a token at that age.
#pragma once
#include "calibrate/allocation.h"
#include "calibrate/price_samples.h"

namespace stief {

struct Prices {
    std::vector<double> dropped, noise;  // (d)  a_i, n_i in nats a token
};

// One head's keys or values in its basis: coordinates of unit spread, the most dearly priced first:
// by noise where they are coded, else by what dropping them costs.
struct PricedUnit {
    bool coded = true;  // coordinates are rounded to few bits; else stored as elements or dropped
    bool rotated = false;               // keys after rotation
    Metric metric;
    std::vector<float> mean;            // (d)  μ of keys that are coded, before rotation; or none: 0
    Matrix moment;                      // (d, d)  mean (k − μ)ᵀ(k − μ), of which the spread is; of
                                        // rotated keys (k − R μ)ᵀ(k − R μ)
    Matrix Q;                           // (d, d)
    std::vector<double> spread;         // (d)  σ
    std::vector<float> encode, decode;  // (d, d)  E = S Q / σ, D = σ Qᵀ S⁻¹
    Prices compressed;                  // of queries that find the token compressed, at any age
    std::vector<Prices> age;            // (ages)
    // (widths, d): Σ e² / Σ ρ² of a coordinate with every coordinate at that width
    std::vector<std::vector<double>> distortion;

    size_t width() const { return Q.rows; }
    void turn_to(const Matrix& Q);  // spread, encode and decode follow
};

// The basis: eigenvectors of S C S with S² = Σ gᵀg and, of rows less their mean, C = Σ ‖g‖ kᵀk where
// they are coded, Σ ‖g‖² kᵀk else; g of the queries that find tokens compressed. rotated: of keys after
// rotation, into which samples of keys before it are turned.
PricedUnit price_unit(const PriceSamples& samples, size_t unit, bool coded, bool rotated, DType dtype);
// A unit that was turned since: what its coordinates cost now. Their order stays.
void price_again(PricedUnit& unit, const PriceSamples& samples, size_t index, DType dtype);

// Every format on the unit's own greedy path from nothing to whole rows, priced by what the
// quantiser does to the unit's rows; where nothing is coded, every rank in steps of 4.
Choices formats_of(const PricedUnit& unit, const Prices& prices, DType dtype);
// What a format costs at those prices: nats a token.
double price_of(const PricedUnit& unit, const Prices& prices, const RowFormat& format);

// What an error in each stored coordinate costs, relative to the dearest: pack_row's weight.
std::vector<float> weights_of(const PricedUnit& unit);
Cut cut_of(const PricedUnit& unit, const std::vector<RowFormat>& format);  // (ages)

}  // namespace stief
