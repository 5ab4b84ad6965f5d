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
// A layer's input is kept and, of as many layers as a quarter of the free memory holds, what the way
// back reads beside it (LayerKept): there only attention runs again on the way back, elsewhere all of
// the layer but its last product. Memory on the backend: (L + 1, T, D) floats, 16 MiB of logits and
// those layers beside the pass; of a 1B model over 1,024 tokens 84 MiB each.
#pragma once
#include <functional>

#include "calibrate/collect.h"

namespace stief {

struct ModelBackward {
    LayerPass& pass;

    // most: tokens of a sequence; most_kept: bytes of what is kept of layers, at most.
    ModelBackward(LayerPass& over, int most, size_t most_kept = SIZE_MAX);

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
    Buffer kept_memory;
    std::vector<LayerKept> kept;  // of the last layers
    Buffer xn, logits, target;  // (piece, D), (piece, V) ×2  target: of the full model, when asked
    Staged reference;           // (T, D)

    size_t rows(int T) const { return size_t(T) * size_t(pass.c.D); }
    const LayerKept* kept_of(int l) const;
    void forward(const std::vector<Token>& ids, const Step& step, const std::vector<LayerCuts>& cuts,
                 const Visit& visit, bool keep);
    void back(const Step& step, const std::vector<LayerCuts>& cuts, const Visit& visit);
    template <class F>
    void back_through_classifier(int T, const F& to_gradient);
};

}  // namespace stief
