#include "calibrate/model_backward.h"

#include <algorithm>
#include <cmath>

namespace stief {

ModelBackward::ModelBackward(LayerPass& over, int most, size_t most_kept) : pass(over) {
    Backend& ops = *pass.model.backend;
    const Config& c = pass.c;
    size_t V = size_t(c.V), D = size_t(c.D), rows = size_t(most) * D;
    piece = rows_together(c, size_t(most));
    inputs = Buffer(ops, size_t(c.L + 1) * rows * sizeof(float), "the inputs of every layer");
    dx = Buffer(ops, rows * sizeof(float), "a gradient of the residual stream");
    xn = Buffer(ops, piece * D * sizeof(float), "a sequence's last norm");
    logits = Buffer(ops, piece * V * sizeof(float), "logits");

    size_t each = LayerKept().place(c, most, nullptr);
    kept.resize(std::min(size_t(c.L), std::min(most_kept, ops.available() / 4) / (each * sizeof(float))));
    if (kept.empty()) return;
    kept_memory = Buffer(ops, kept.size() * each * sizeof(float), "what is kept of layers");
    for (size_t i = 0; i < kept.size(); i++) kept[i].place(c, most, kept_memory.f32() + i * each);
}

const LayerKept* ModelBackward::kept_of(int l) const {
    size_t left = size_t(pass.c.L - l);  // layers from this one on
    return left <= kept.size() ? &kept[kept.size() - left] : nullptr;
}

// Logits of `count` rows of what the last layer puts out; xn: their norm.
static void logits_of(Model& model, float* logits, float* xn, const float* out, int count) {
    model.backend->rmsnorm(xn, out, model.norm, model.config.norm_eps, count);
    model.backend->matmul(logits, xn, model.classifier, count, false);
}

// dx ← the gradient that to_gradient(first row, rows) makes of the logits, through the classifier.
template <class F>
void ModelBackward::back_through_classifier(int T, const F& to_gradient) {
    Model& model = pass.model;
    size_t D = size_t(pass.c.D);
    pass.ops_back->zero(dx.f32(), rows(T));
    for (size_t at = 0; at < size_t(T); at += piece) {
        int count = int(std::min(piece, size_t(T) - at));
        const float* out = output(T) + at * D;
        logits_of(model, logits.f32(), xn.f32(), out, count);
        to_gradient(at, count);
        model.backend->matmul_transposed(xn.f32(), logits.f32(), model.classifier, count);
        pass.ops_back->rmsnorm_backward(dx.f32() + at * D, xn.f32(), out, model.norm,
                                        pass.c.norm_eps, count);
    }
}

void ModelBackward::forward(const std::vector<Token>& ids, const Step& step,
                            const std::vector<LayerCuts>& cuts, const Visit& visit, bool keep) {
    auto input = [&](int l) { return inputs.f32() + size_t(l) * rows(step.T); };
    embed_sequence(pass.model, input(0), ids);
    for (int l = 0; l < pass.c.L; l++) {
        pass.keep_in(keep ? kept_of(l) : nullptr);
        pass.begin_on_backend(l, input(l), step);
        pass.forward(cuts[size_t(l)]);
        if (visit) visit(l);
        pass.ops_back->copy(input(l + 1), pass.out, rows(step.T));
    }
    pass.keep_in(nullptr);
    check(std::isfinite(pass.ops_back->squared_norm(output(step.T), rows(step.T))),
          "%s: the output of the last layer is not finite: the checkpoint is damaged or not trained",
          pass.c.folder.c_str());
}

void ModelBackward::there(const std::vector<Token>& ids, const Step& step,
                          const std::vector<LayerCuts>& cuts, const Visit& visit) {
    forward(ids, step, cuts, visit, false);
}

void ModelBackward::back(const Step& step, const std::vector<LayerCuts>& cuts, const Visit& visit) {
    for (int l = pass.c.L - 1; l >= 0; l--) {
        pass.keep_in(kept_of(l));
        pass.again(l, inputs.f32() + size_t(l) * rows(step.T), step, cuts[size_t(l)], kept_of(l));
        pass.back_to_input(cuts[size_t(l)], dx.f32());
        visit(l);
    }
    pass.keep_in(nullptr);
}

void ModelBackward::run(const std::vector<Token>& ids, const Step& step,
                        const std::vector<LayerCuts>& cuts, uint64_t seed, const Visit& visit) {
    forward(ids, step, cuts, {}, true);
    back_through_classifier(step.T, [&](size_t at, int count) {
        pass.ops_back->score_direction(logits.f32(), seed + at, count, pass.c.V);
    });
    back(step, cuts, visit);
}

void ModelBackward::run_divergence(const std::vector<Token>& ids, const Step& step,
                                   const std::vector<LayerCuts>& cuts, const float* full,
                                   const Visit& visit) {
    Backend& ops = *pass.model.backend;
    size_t most = inputs.bytes / sizeof(float) / size_t(pass.c.L + 1), V = size_t(pass.c.V);
    if (!target.f32()) {
        reference = Staged(ops, most, "the full model's output");
        target = Buffer(ops, piece * V * sizeof(float), "logits");
    }
    forward(ids, step, cuts, {}, true);
    const float* theirs = reference.read(full, rows(step.T));
    back_through_classifier(step.T, [&](size_t at, int count) {
        size_t D = size_t(pass.c.D);
        logits_of(pass.model, target.f32(), xn.f32(), theirs + at * D, count);
        pass.ops_back->divergence_gradient(logits.f32(), target.f32(), count, pass.c.V);
    });
    back(step, cuts, visit);
}

}  // namespace stief
