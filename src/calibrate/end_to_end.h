// Held-out sequences through the whole model, some layers with cut keys and values: what that does
// to the prediction of the next token. What is exact is what the pass and the cuts say:
// with --objective model the first tokens (LayerCuts::sinks) and those nearer than the first
// distance of the pass (split_by_distance), as in the cache; with --objective layer nothing is.
// The cache itself is measured by forward/perplexity.h once the bases are chosen.
#pragma once
#include <array>
#include <functional>
#include <span>

#include "calibrate/collect.h"
#include "forward/perplexity.h"

namespace stief {

struct EndToEnd {
    LayerPass& pass;
    const Sequences& sequences;
    size_t count;             // the first of the sequences
    std::vector<float> full;  // (count, T, D)  host: of the whole model, after its last layer

    std::vector<int> ends;      // of groups of layers, where each_alone() is asked for them
    std::vector<float> before;  // (count, groups, T, D)  host: of the whole model, before each group

    std::function<void(int)> passed;    // after so many layers of a sequence

    // A group ends where the next begins.
    EndToEnd(LayerPass& over, const Sequences& held_out, size_t at_most,
             const std::vector<int>& groups = {}, std::function<void(int)> progress = [](int) {});

    // Perplexity, and KL(full ‖ ·), with one LayerCuts a layer.
    Measured measure(const std::vector<LayerCuts>& cuts);
    // The same for each of several ways to cut; the full model's logits are made once for all.
    std::vector<Measured> measure(std::span<const std::vector<LayerCuts>> ways);
    // w_l = KL / Δ_l of layer l alone with those cuts, X_l and Y_l as collected.
    double sensitivity(const LayerInputs& inputs, int l, const LayerCuts& cuts);

    // KL(full ‖ ·) with the keys (first) or the values (second) of one group of layers alone cut.
    // (groups)
    std::vector<std::array<double, 2>> each_alone(const std::vector<LayerCuts>& cuts);

  private:
    size_t each, piece;                 // floats of a sequence; rows of logits at once
    Buffer x, xn, logits, logits_full;  // (T, D), (piece, D), (piece, V) ×2
    Staged reference;                   // (T, D)
    std::vector<RowScore> scores;       // (piece)

    float* before_group(size_t s, size_t group) { return before.data() + (s * ends.size() + group) * each; }
    void run(size_t s, int first, int end, const std::vector<LayerCuts>* cuts);
    void to_logits(Buffer& to, const float* from, size_t rows);
    void keep(std::vector<float>& outputs, size_t w);
    void score(size_t s, const std::vector<float>& outputs, std::vector<Tally>& tally);
};

}  // namespace stief
