// Descent of all bases at once: its gradient against central differences of the divergence that it
// goes down, and what it does to a tiny model.
#include "calibrate/model_descent.h"

#include "backends.h"
#include "calibrate/end_to_end.h"
#include "calibrate/stiefel.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

Matrix some_matrix(size_t d, uint64_t seed) {
    Random random(seed);
    Matrix A(d, d);
    for (double& a : A.data) a = random.normal();
    return A;
}

Matrix add(Matrix A, const Matrix& B) {
    add_scaled(A, 1, B);
    return A;
}

struct Tried {
    static constexpr int T = 24;
    Scratch scratch;
    Model model;
    Sequences text;
    std::vector<float> rotation;
    std::vector<PricedUnit> units;
    std::vector<std::vector<RowFormat>> formats;  // (units, ages)
    bool rotated, joint;

    Tried(const Variant& variant, bool after_rotation, int sequences, bool joint_values = false)
        : rotated(after_rotation), joint(joint_values) {
        TinyModel tiny{.why = "descent", .L = 2, .D = 16, .F = 24, .V = 40, .H = 4, .G = 2};
        tiny.deviation = 0.15;
        write_tiny_model(tiny, scratch.path("."));
        model = open_model(scratch.path("."), variant);
        model.backend->exact = true;
        text.T = T;
        Random random(3);
        for (int s = 0; s < sequences; s++) {
            std::vector<Token>& ids = text.ids.emplace_back();
            for (int t = 0; t < T; t++) ids.push_back(Token(random.below(40)));
            text.pos.push_back(s);
        }
        rotation = rotation_table(model.config, 64);
        for (size_t u = 0; u < layout().count(); u++) {
            size_t d = layout().width(u);
            PricedUnit& unit = units.emplace_back();
            Matrix A = some_matrix(d, 10 + u), B = some_matrix(d, 40 + u);
            unit.metric = metric_of(add(times_transposed(A, A), identity(d)));
            unit.moment = times_transposed(B, B);
            unit.compressed.noise.assign(d, 1);
            unit.turn_to(qr(some_matrix(d, 70 + u)).Q);
            formats.push_back({RowFormat::whole(u % 3 ? 5 : 3)});
        }
    }
    Units layout() const { return Units(model.config, joint); }
    // Rows are whole for queries nearer than 3, and keep 7 or 6 coordinates for those nearer than 9.
    void age(LayerPass& pass) {
        pass.split_by_distance({3, 9});
        for (size_t u = 0; u < units.size(); u++)
            formats[u].insert(formats[u].begin(), RowFormat::whole(u % 2 ? 6 : 7));
    }
    std::vector<LayerCuts> cuts() const {
        const Config& c = model.config;
        std::vector<LayerCuts> all(size_t(c.L), LayerCuts(c, rotated, joint));
        for (size_t u = 0; u < units.size(); u++) {
            auto [l, g, values] = layout().at(u);
            LayerCuts& layer = all[size_t(l)];
            layer.sinks = 2, layer.dtype = DType::F32;
            (values ? layer.v : layer.k)[size_t(g)] = cut_of(units[u], formats[u]);
        }
        return all;
    }
};

// (T, V)
Floats logits(ModelBackward& back, const std::vector<Token>& ids,
              const std::vector<LayerCuts>& cuts) {
    Model& model = back.pass.model;
    size_t D = size_t(model.config.D), V = size_t(model.config.V), T = ids.size();
    Buffer x(*model.backend, T * D * sizeof(float), "x"), z(*model.backend, T * V * 4, "z");
    back.there(ids, {0, int(T)}, cuts);
    model.backend->rmsnorm(x.f32(), back.output(int(T)), model.norm, model.config.norm_eps, int(T));
    model.backend->matmul(z.f32(), x.f32(), model.classifier, int(T), false);
    Floats all(T * V, NaN);
    model.backend->download(all.data(), z.f32(), all.size() * sizeof(float));
    return all;
}

// Σ_t KL(softmax(a_t) ‖ softmax(b_t))
double divergence(const Floats& a, const Floats& b, size_t V) {
    double sum = 0;
    for (size_t row = 0; row < a.size(); row += V) {
        double za = 0, zb = 0;
        for (size_t i = row; i < row + V; i++) za += std::exp(double(a[i])), zb += std::exp(double(b[i]));
        for (size_t i = row; i < row + V; i++)
            sum += std::exp(double(a[i])) / za * (double(a[i]) - std::log(za) - double(b[i]) + std::log(zb));
    }
    return sum;
}

}  // namespace

TEST_CASE("the gradient of the divergence by every basis is its central difference") {
    for (const Variant& variant : groups())
        for (int way = 0; way < 6; way++) {
            bool rotated = way % 3 == 1, joint = way % 3 == 2, aged = way >= 3;
            CAPTURE(variant.group);
            CAPTURE(rotated);
            CAPTURE(joint);
            CAPTURE(aged);
            Tried tried(variant, rotated, 1, joint);
            const Config& c = tried.model.config;
            LayerPass pass(tried.model, Tried::T, tried.rotation);
            if (aged) tried.age(pass);
            ModelBackward back(pass, Tried::T);
            ModelDescent descent(back, tried.text, tried.scratch.path("."), [] {});
            std::vector<LayerCuts> cuts = tried.cuts();
            std::vector<std::vector<LayerGradient>> gradient(
                size_t(c.L), std::vector<LayerGradient>(pass.ages(), LayerGradient(c, joint)));
            back.run_divergence(tried.text.ids[0], tried.text.step(0), cuts, descent.full.data,
                                [&](int l) {
                                    pass.add_basis_gradient(cuts[size_t(l)], gradient[size_t(l)]);
                                });
            LayerCuts whole(c, rotated);
            Floats full = logits(back, tried.text.ids[0], {size_t(c.L), whole});
            constexpr double EPSILON = 1e-3;
            Doubles got, want;
            for (size_t u = 0; u < tried.units.size(); u++) {
                auto [l, head, values] = tried.layout().at(u);
                PricedUnit before = tried.units[u];
                Matrix G = basis_gradient(before, gradient[size_t(l)], size_t(head), values,
                                          tried.formats[u]);
                Matrix A = some_matrix(before.Q.rows, 100 + u), W = A;  // skew
                add_scaled(W, -1, transpose(A));
                Matrix along = times(W, before.Q);  // dQ/dτ at τ = 0 is −W Q
                double sum = 0, ends[2];
                for (size_t i = 0; i < along.data.size(); i++) sum -= G.data[i] * along.data[i];
                got.push_back(sum);
                for (int side : {0, 1}) {
                    tried.units[u].turn_to(cayley(before.Q, W, side ? -EPSILON : EPSILON));
                    ends[side] = divergence(full, logits(back, tried.text.ids[0], tried.cuts()),
                                            size_t(c.V));
                }
                tried.units[u] = before;
                want.push_back((ends[0] - ends[1]) / (2 * EPSILON));
            }
            CHECK(nmse(got, want) <= 1e-5);
        }
}

TEST_CASE("descent lowers the divergence on what it learns from, at ranks and at codes") {
    Variant cpu{"cpu", {.name = "cpu"}, 2, {}, false};
    for (int way : {0, 1, 2, 3}) {
        bool coded = way > 0, aged = way == 2, joint = way == 3;
        CAPTURE(coded);
        CAPTURE(aged);
        CAPTURE(joint);
        Tried tried(cpu, false, 6, joint);
        if (coded)
            for (auto& format : tried.formats) format[0].count = {0, 0, 0, 0, 0, 0, 8, 0};
        LayerPass pass(tried.model, Tried::T, tried.rotation);
        if (aged) tried.age(pass);
        ModelBackward back(pass, Tried::T);
        ModelDescent descent(back, tried.text, tried.scratch.path("."), [] {});
        EndToEnd measured(pass, tried.text, 6);
        double before = measured.measure(tried.cuts()).divergence.mean;
        descent.run(tried.layout(), tried.units, tried.formats, [&] { return tried.cuts(); }, {60, 6, 0.1, 1},
                    [] {});
        double after = measured.measure(tried.cuts()).divergence.mean;
        CHECK(after < before);
        for (const PricedUnit& unit : tried.units) CHECK(infeasibility(unit.Q) <= FEASIBLE);
    }
}

TEST_SUITE_END();
