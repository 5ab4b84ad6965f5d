// The way back through the whole model, README.md §6: what the model's own prediction asks of every
// key and every value, of all layers in one pass over a sequence.
//
//     g_s = ∂/∂k_s ⟨u, z⟩   z the logits of all positions, u a direction with E[uᵀu] = diag(p) −
//     pᵀp
//
// so that E[g_sᵀ g_s] is the Fisher information of −ln p with respect to k_s, as it is for tokens
// drawn from p, whose score u has the same covariance but a heavy tail: a rare token, once drawn,
// weighs 1/p (Amari 1998 has the metric; the direction is Hutchinson's in the space of √p).
//
// Of each layer only the input is kept; a layer runs again on the way back. Memory on the backend:
// (L + 1, T, D) floats and 16 MiB of logits beside the pass.
#pragma once
#include <functional>

#include "calibrate/collect.h"

namespace stief {

struct ModelBackward {
    LayerPass& pass;

    ModelBackward(LayerPass& over, int most);  // tokens of a sequence at most

    // With one LayerCuts a layer (which may cut nothing). visit(l), from the last layer
    // to the first, finds k, k_rotated, v and their gradients dk (before rotation unless cuts say
    // after) and dv in the pass. The seed decides u.
    using Visit = std::function<void(int)>;
    void run(const std::vector<Token>& ids, const Step& step, const std::vector<LayerCuts>& cuts,
             uint64_t seed, const Visit& visit);
    // The same for the gradient of Σ_t KL(full ‖ cut) in place of ⟨u, z⟩, where the full model's
    // last layer put out `full`.
    void run_divergence(const std::vector<Token>& ids, const Step& step,
                        const std::vector<LayerCuts>& cuts, const float* full,  // (T, D)  host
                        const Visit& visit);
    // The way there alone; then what the last layer puts out, of this many tokens. visit(l) finds k,
    // k_rotated and v in the pass.
    void there(const std::vector<Token>& ids, const Step& step, const std::vector<LayerCuts>& cuts,
               const Visit& visit = {});
    const float* output(int T) const { return inputs.f32() + size_t(pass.c.L) * rows(T); }

  private:
    size_t piece;               // rows of logits at once
    Buffer inputs, dx;          // (L + 1, T, D), (T, D)
    Buffer xn, logits, target;  // (piece, D), (piece, V) ×2  target: of the full model, when asked
    Staged reference;           // (T, D)

    size_t rows(int T) const { return size_t(T) * size_t(pass.c.D); }
    void back(const Step& step, const std::vector<LayerCuts>& cuts, const Visit& visit);
    template <class F>
    void back_through_classifier(int T, const F& to_gradient);
};

}  // namespace stief
