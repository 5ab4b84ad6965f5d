// Descent of all bases of a model at once on what the cache costs in the end, at the formats that
// will be used: README §3 with the divergence of the model's distribution in place of a layer's error.
//
//     k̃ = c̃ D,  c̃ = unpack(pack(k E)),   E = S Q J_r / σ,  D = σ Qᵀ S⁻¹
//     ∂/∂Q = S (kᵀ∂k̃) S⁻¹ Q J_r + S⁻¹ (c̃ᵀ∂k̃)ᵀ σ                                            (18)
//
// with rounding as noise that does not depend on Q (straight-through, Bengio et al. 2013).
#pragma once
#include "calibrate/model_backward.h"
#include "calibrate/prices.h"

namespace stief {

// (18) from kᵀ∂k̃ and c̃ᵀ∂k̃.
Matrix basis_gradient(const PricedUnit& unit, const Matrix& of_rows, const Matrix& of_stored,
                      int kept);

// (count, T, D)  what the uncut model's last layer puts out for each sequence. visit(l) finds k,
// k_rotated and v of the layer in the pass; progress(): after each sequence.
Activations full_outputs(ModelBackward& through, const Sequences& learn, const std::string& folder,
                         const std::function<void()>& progress,
                         const ModelBackward::Visit& visit = {});

struct ModelDescent {
    ModelBackward& model;
    const Sequences& sequences;
    Activations full;  // full_outputs

    ModelDescent(ModelBackward& through, const Sequences& learn, const std::string& folder,
                 const std::function<void()>& progress);

    struct Options {
        int steps, batch;
        double tau;
        uint64_t seed;
    };
    // of: which unit is whose. kept: coordinates that each unit stores. cuts(): those of the units as
    // they are now, one LayerCuts a layer.
    void run(const Units& of, std::vector<PricedUnit>& units, const std::vector<int>& kept,
             const std::function<std::vector<LayerCuts>()>& cuts, const Options& options,
             const std::function<void()>& progress);
};

}  // namespace stief
