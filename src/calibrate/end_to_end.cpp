#include "calibrate/end_to_end.h"

#include <algorithm>

namespace stief {

EndToEnd::EndToEnd(LayerPass& over, const Sequences& held_out, size_t at_most,
                   const std::vector<int>& groups, std::function<void(int)> progress)
    : pass(over),
      sequences(held_out),
      count(std::min(at_most, held_out.count())),
      ends(groups),
      passed(std::move(progress)) {
    Backend& ops = *pass.model.backend;
    size_t V = size_t(pass.c.V), D = size_t(pass.c.D);
    each = size_t(sequences.T) * D;
    piece = rows_together(pass.c, size_t(sequences.T));
    x = Buffer(ops, each * sizeof(float), "a sequence's residual stream");
    xn = Buffer(ops, piece * D * sizeof(float), "a sequence's last norm");
    logits = Buffer(ops, piece * V * sizeof(float), "logits");
    logits_full = Buffer(ops, piece * V * sizeof(float), "logits");
    scores.resize(piece);
    reference = Staged(ops, each, "the full model's output");
    full.resize(count * each), before.resize(count * ends.size() * each);
    for (size_t s = 0; s < count; s++) {
        embed_sequence(pass.model, x.f32(), sequences.ids[s]);
        int first = 0;
        for (size_t i = 0; i < ends.size(); first = ends[i++]) {
            ops.download(before_group(s, i), x.f32(), each * sizeof(float));
            run(s, first, ends[i], nullptr);
        }
        run(s, first, pass.c.L, nullptr);
        ops.download(full.data() + s * each, x.f32(), each * sizeof(float));
    }
}

// x: in the input of layer `first`, out the output of the one before `end`. Without cuts nothing is
// cut.
void EndToEnd::run(size_t s, int first, int end, const std::vector<LayerCuts>* cuts) {
    LayerCuts whole(pass.c, false);
    for (int l = first; l < end; l++) {
        pass.begin_on_backend(l, x.f32(), sequences.step(s));
        pass.forward(cuts ? (*cuts)[size_t(l)] : whole);
        pass.ops_back->copy(x.f32(), pass.out, each);
    }
    passed(end - first);
}

// to ← logits of rows of the last layer's output.
void EndToEnd::to_logits(Buffer& to, const float* from, size_t rows) {
    Model& model = pass.model;
    model.backend->rmsnorm(xn.f32(), from, model.norm, pass.c.norm_eps, int(rows));
    model.backend->matmul(to.f32(), xn.f32(), model.classifier, int(rows), false);
}

// Way w of outputs (ways, T, D) ← x.
void EndToEnd::keep(std::vector<float>& outputs, size_t w) {
    pass.model.backend->download(outputs.data() + w * each, x.f32(), each * sizeof(float));
}

// What sequence s has become by several ways, against the full model's, whose
// logits are made once for all. The last token predicts nothing known.
void EndToEnd::score(size_t s, const std::vector<float>& outputs, std::vector<Tally>& tally) {
    Backend& ops = *pass.model.backend;
    size_t D = size_t(pass.c.D), scored = size_t(sequences.T) - 1;
    const float* theirs = reference.read(full.data() + s * each, each);
    for (size_t at = 0; at < scored; at += piece) {
        size_t rows = std::min(piece, scored - at);
        to_logits(logits_full, theirs + at * D, rows);
        for (size_t w = 0; w < tally.size(); w++) {
            ops.upload(x.f32(), outputs.data() + w * each + at * D, rows * D * sizeof(float));
            to_logits(logits, x.f32(), rows);
            ops.score(scores.data(), logits.f32(), logits_full.f32(),
                      sequences.ids[s].data() + at + 1, int(rows), pass.c.V);
            for (size_t i = 0; i < rows; i++) tally[w].add(scores[i], true);
        }
    }
}

Measured EndToEnd::measure(const std::vector<LayerCuts>& cuts) {
    return measure(std::span(&cuts, 1))[0];
}

std::vector<Measured> EndToEnd::measure(std::span<const std::vector<LayerCuts>> ways) {
    std::vector<Tally> tally(ways.size());
    std::vector<float> outputs(ways.size() * each);
    for (size_t s = 0; s < count; s++) {
        for (size_t w = 0; w < ways.size(); w++) {
            embed_sequence(pass.model, x.f32(), sequences.ids[s]);
            run(s, 0, pass.c.L, &ways[w]);
            keep(outputs, w);
        }
        score(s, outputs, tally);
    }
    std::vector<Measured> all;
    for (Tally& one : tally) all.push_back(one.result()), all.back().compressed_share = 1;
    return all;
}

std::vector<std::array<double, 2>> EndToEnd::each_alone(const std::vector<LayerCuts>& cuts) {
    std::vector<Tally> tally(2 * ends.size());  // of a group's keys, of its values
    std::vector<float> outputs(tally.size() * each);
    for (size_t s = 0; s < count; s++) {
        int first = 0;
        for (size_t i = 0; i < ends.size(); first = ends[i++])
            for (bool values : {false, true}) {
                std::vector<LayerCuts> alone(cuts.size(), LayerCuts(pass.c, cuts[0].rotated));
                for (int l = first; l < ends[i]; l++) {
                    alone[size_t(l)] = cuts[size_t(l)];
                    for (Cut& other : values ? alone[size_t(l)].k : alone[size_t(l)].v) other = {};
                }
                pass.model.backend->upload(x.f32(), before_group(s, i), each * sizeof(float));
                run(s, first, pass.c.L, &alone);
                keep(outputs, 2 * i + values);
            }
        score(s, outputs, tally);
    }
    std::vector<std::array<double, 2>> all(ends.size());
    for (size_t i = 0; i < tally.size(); i++)
        all[i / 2][i % 2] = tally[i].result().divergence.mean;
    return all;
}

double EndToEnd::sensitivity(const LayerInputs& inputs, int l, const LayerCuts& cuts) {
    std::vector<Tally> tally(1);
    std::vector<float> output(each);
    double error = 0, energy = 0;
    for (size_t s = 0; s < count; s++) {
        pass.begin(l, inputs.held_x(s), sequences.step(s));
        pass.forward(cuts);
        error += pass.squared_error(inputs.held_y(s));
        energy += inputs.held_energy(s);
        pass.ops_back->copy(x.f32(), pass.out, each);
        run(s, l + 1, pass.c.L, nullptr);
        keep(output, 0);
        score(s, output, tally);
    }
    double delta = error / energy;
    return delta > 0 ? tally[0].result().divergence.mean / delta : 0;
}

}  // namespace stief
