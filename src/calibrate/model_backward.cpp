#include "calibrate/model_backward.h"

#include <algorithm>

namespace stief {

ModelBackward::ModelBackward(LayerPass& over, int most) : pass(over) {
    Backend& ops = *pass.model.backend;
    const Config& c = pass.c;
    size_t V = size_t(c.V), D = size_t(c.D), rows = size_t(most) * D;
    piece = std::clamp<size_t>((size_t(16) << 20) / (V * 4), 1, size_t(most));
    inputs = Buffer(ops, size_t(c.L + 1) * rows * sizeof(float), "the inputs of every layer");
    dx = Buffer(ops, rows * sizeof(float), "a gradient of the residual stream");
    xn = Buffer(ops, piece * D * sizeof(float), "a sequence's last norm");
    logits = Buffer(ops, piece * V * sizeof(float), "logits");
}

// dx ← ∂⟨u, z⟩/∂out
void ModelBackward::back_through_classifier(const float* out, int T, uint64_t seed) {
    Model& model = pass.model;
    Backend& ops = *model.backend;
    size_t D = size_t(pass.c.D);
    pass.ops_back->zero(dx.f32(), size_t(T) * D);
    for (size_t at = 0; at < size_t(T); at += piece) {
        int rows = int(std::min(piece, size_t(T) - at));
        ops.rmsnorm(xn.f32(), out + at * D, model.norm, pass.c.norm_eps, rows);
        ops.matmul(logits.f32(), xn.f32(), model.classifier, rows, false);
        pass.ops_back->score_direction(logits.f32(), seed + at, rows, pass.c.V);
        ops.matmul_transposed(xn.f32(), logits.f32(), model.classifier, rows);
        pass.ops_back->rmsnorm_backward(dx.f32() + at * D, xn.f32(), out + at * D, model.norm,
                                        pass.c.norm_eps, rows);
    }
}

void ModelBackward::run(const std::vector<Token>& ids, const Step& step,
                        const std::vector<LayerCuts>& cuts, uint64_t seed,
                        const std::function<void(int)>& visit) {
    const Config& c = pass.c;
    size_t rows = size_t(step.T) * size_t(c.D);
    auto input = [&](int l) { return inputs.f32() + size_t(l) * rows; };
    embed_sequence(pass.model, input(0), ids);
    for (int l = 0; l < c.L; l++) {
        pass.begin_on_backend(l, input(l), step);
        pass.forward(cuts[size_t(l)]);
        pass.ops_back->copy(input(l + 1), pass.out, rows);
    }
    back_through_classifier(input(c.L), step.T, seed);
    for (int l = c.L - 1; l >= 0; l--) {
        pass.begin_on_backend(l, input(l), step);
        pass.forward(cuts[size_t(l)]);
        pass.back_to_input(cuts[size_t(l)], dx.f32());
        visit(l);
    }
}

}  // namespace stief
