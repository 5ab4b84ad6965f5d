// The metric of the layer's output, README.md §1: what a layer's output would suffer from a small
// change of each key and value, estimated by random directions u of the output (Hutchinson 1990).
//
//     g_t = ∂⟨u, Y⟩/∂k̃_t,   E[g_tᵀ g_t] = J_tᵀ J_t,   J_t = ∂Y/∂k̃_t
//     S² = Σ_t g_tᵀ g_t,   Σ = Σ_t ‖g_t‖² k_tᵀ k_t        and likewise for values
//
// so that Σ_t ‖(k_t − k̃_t) J_tᵀ‖² ≈ tr(S (I − P)ᵀ Σ (I − P) S) up to a factor: attention weights,
// W_o, norm and MLP are all in it. The two sums are the factors of Σ_t J_tᵀJ_t ⊗ k_tᵀk_t taken as
// one Kronecker product (Martens and Grosse 2015, K-FAC).
#pragma once
#include <functional>

#include "calibrate/collect.h"

namespace stief {

struct ProbedSide {
    Matrix energy;  // (d, d)  Σ_t g_tᵀ g_t
    Matrix moment;  // (d, d)  Σ_t ‖g_t‖² k_tᵀ k_t
};

struct OutputMoments {
    std::vector<ProbedSide> k, k_rotated, v;  // (G)  keys before and after rotation
    OutputMoments(const Config& config);
};

// One direction for each learning sequence, drawn from the seed and the layer alone.
OutputMoments probe_output(LayerPass& pass, const LayerInputs& inputs, int l, uint64_t seed,
                           const std::function<void()>& progress);

}  // namespace stief
