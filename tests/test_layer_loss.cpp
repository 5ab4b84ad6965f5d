// The layer loss and its way back, against the same equations in double precision and their central
// differences.
#include "calibrate/layer_loss.h"

#include "backends.h"
#include "calibrate/stiefel.h"
#include "reference_layer.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

struct Unit {  // one head's keys or values
    Matrix Q;
    Metric metric;
    size_t r;
};

Metric some_metric(size_t d, uint64_t seed) {
    Random random(seed);
    Matrix A(d, d);
    for (double& a : A.data) a = random.normal();
    Matrix energy = transposed_times(A, A);
    add_scaled(energy, double(d), identity(d));  // tame: S⁻¹ multiplies the rounding of f32
    return metric_of(energy);
}

Matrix some_basis(size_t d, uint64_t seed) {
    Random random(seed);
    Matrix A(d, d);
    for (double& a : A.data) a = random.normal();
    return qr(A).Q;
}

// k P with P = S Q J_r Qᵀ S⁻¹ in double, Q any matrix.
void cut(Vec& all, size_t at, const Unit& unit) {
    size_t d = unit.Q.rows;
    if (unit.r == d) return;
    Matrix Qr = first_columns(unit.Q, unit.r), row(1, d);
    for (size_t i = 0; i < d; i++) row(0, i) = all[at + i];
    row = times(
        times(times_transposed(times(times(row, unit.metric.S), Qr), Qr), unit.metric.S_inverse),
        identity(d));
    for (size_t i = 0; i < d; i++) all[at + i] = row(0, i);
}

double distance(const std::vector<Vec>& a, const std::vector<Vec>& b) {
    double sum = 0;
    for (size_t t = 0; t < a.size(); t++)
        for (size_t i = 0; i < a[t].size(); i++) sum += (a[t][i] - b[t][i]) * (a[t][i] - b[t][i]);
    return sum;
}

Floats host_out(const LayerPass& pass) {
    Floats out(size_t(pass.T) * size_t(pass.c.D), NaN);
    pass.model.backend->download(out.data(), pass.out, out.size() * sizeof(float));
    return out;
}

Floats flat(const std::vector<Vec>& rows) {
    Floats all;
    for (const Vec& row : rows) all.insert(all.end(), row.begin(), row.end());
    return all;
}

}  // namespace

TEST_CASE("the gradient of the layer's error in every basis is its central difference") {
    const struct {
        const char* why;
        bool rotated;
        size_t rk, rv;
        int T, H, G;
    } cases[] = {{"keys before rotation", false, 4, 4, 9, 4, 2},
                 {"keys after rotation", true, 4, 6, 9, 4, 2},
                 {"one kv head, small ranks", false, 2, 1, 5, 3, 1},
                 {"values whole", false, 3, 8, 9, 4, 4},
                 {"keys whole", true, 8, 3, 7, 2, 2},
                 {"two blocks of queries", false, 4, 4, 131, 2, 1}};
    for (auto& one : cases) {
        std::string why = one.why;
        CAPTURE(why);
        Scratch scratch;
        TinyModel tiny{.why = one.why, .L = 1, .D = 16, .F = 24, .V = 32, .H = one.H, .G = one.G};
        tiny.deviation = 0.4;
        write_tiny_model(tiny, scratch.path("."));
        Model model = Model::open(scratch.path("."), {.name = "cpu"}, 2);
        model.backend->exact = true;
        const Config& c = model.config;
        size_t d = size_t(c.d), G = size_t(c.G), T = size_t(one.T);
        int pos = 37;

        Floats x = normals(T * size_t(c.D), 5);
        std::vector<Vec> rows;
        for (size_t t = 0; t < T; t++)
            rows.emplace_back(x.begin() + ptrdiff_t(t) * c.D, x.begin() + ptrdiff_t(t + 1) * c.D);
        std::vector<Unit> k_units, v_units;
        LayerCuts cuts(c, one.rotated);
        cuts.dtype = DType::F32;
        for (size_t g = 0; g < G; g++) {
            k_units.push_back({some_basis(d, 10 + g), some_metric(d, 20 + g), one.rk});
            v_units.push_back({some_basis(d, 30 + g), some_metric(d, 40 + g), one.rv});
            cuts.k[g] = cut_to_rank(k_units[g].Q, k_units[g].metric, one.rk);
            cuts.v[g] = cut_to_rank(v_units[g].Q, v_units[g].metric, one.rv);
        }
        ReferenceLayer layer{c, model.weights.layer[0], rope_frequencies(c), one.rotated, pos};
        auto cut_all = [&](size_t, Vec& k, Vec& v) {
            for (size_t g = 0; g < G; g++) cut(k, g * d, k_units[g]), cut(v, g * d, v_units[g]);
        };
        std::vector<Vec> y = layer.run(rows), cut_y = layer.run(rows, cut_all);

        std::vector<Matrix> differences_k(G, Matrix(d, d)), differences_v = differences_k;
        for (bool values : {false, true})
            for (size_t g = 0; g < G; g++) {
                Unit& unit = (values ? v_units : k_units)[g];
                for (size_t i = 0; i < d; i++)
                    for (size_t j = 0; j < unit.r && unit.r < d; j++) {
                        double h = 1e-5, keep = unit.Q(i, j);
                        unit.Q(i, j) = keep + h;
                        double above = distance(y, layer.run(rows, cut_all));
                        unit.Q(i, j) = keep - h;
                        double below = distance(y, layer.run(rows, cut_all));
                        unit.Q(i, j) = keep;
                        (values ? differences_v : differences_k)[g](i, j) =
                            (above - below) / (2 * h);
                    }
            }

        for (const Variant& variant : groups()) {
            CAPTURE(variant.group);
            Model played = open_model(scratch.path("."), variant);
            played.backend->exact = true;
            std::vector<float> rotation = rotation_table(c, pos + one.T);
            LayerPass pass(played, one.T, rotation);
            Floats y_float = flat(y), cut_float = flat(cut_y);
            pass.begin(0, x.data(), {pos, one.T});
            pass.forward(LayerCuts(c, one.rotated));
            CHECK(nmse(host_out(pass), y_float) <= TOL_F32);
            pass.forward(cuts);
            CHECK(nmse(host_out(pass), cut_float) <= TOL_F32);
            CHECK(std::abs(pass.squared_error(y_float.data()) - distance(y, cut_y)) <=
                  1e-5 * distance(y, cut_y));

            LayerGradient gradient(c);
            pass.backward(cuts, y_float.data(), 1.0, gradient);
            for (bool values : {false, true})
                for (size_t g = 0; g < G; g++) {
                    CAPTURE(values);
                    CAPTURE(g);
                    const Unit& unit = (values ? v_units : k_units)[g];
                    if (unit.r == d) continue;
                    const Matrix& moment = values ? gradient.v[g] : gradient.k[g];
                    Matrix AtB = times(times(unit.metric.S, moment), unit.metric.S_inverse);
                    Matrix got = stiefel_gradient(unit.Q, AtB, unit.r);
                    const Matrix& want = (values ? differences_v : differences_k)[g];
                    CHECK(nmse(got.data, want.data) <= 1e-9);  // f32 there and back, differences
                }
        }
    }
}

TEST_CASE("changing one head gives what a whole pass gives; threads do not matter") {
    Scratch scratch;
    write_tiny_model({.why = "change", .L = 1, .dtype = DType::BF16}, scratch.path("."));
    Floats first;
    std::string group;
    for (const Variant& variant : variants()) {
        CAPTURE(variant.group);
        Model model = open_model(scratch.path("."), variant, variant.threads);
        const Config& c = model.config;
        int T = 150;
        Floats x = normals(size_t(T * c.D), 6), y = normals(size_t(T * c.D), 7);
        std::vector<float> rotation = rotation_table(c, T);
        LayerPass pass(model, T, rotation);
        pass.begin(0, x.data(), {0, T});
        LayerCuts cuts(c, false);
        pass.forward(cuts);
        cuts.k[1] = cut_to_rank(some_basis(size_t(c.d), 1), some_metric(size_t(c.d), 2), 3);
        pass.change(cuts, 1);
        Floats changed = host_out(pass);
        pass.forward(cuts);
        CHECK(same_bits(changed, host_out(pass)));
        LayerGradient gradient(c);
        pass.backward(cuts, y.data(), 1, gradient);
        std::vector<float> all = to_floats(gradient.k[1]);
        all.insert(all.end(), changed.begin(), changed.end());
        if (group != variant.group) first = all, group = variant.group;
        CHECK(same_bits(all, first));
    }
}

TEST_CASE("a pass that does not fit says how many tokens would") {
    Scratch scratch;
    write_tiny_model({.why = "memory", .L = 1}, scratch.path("."));
    Model model = Model::open(scratch.path("."), {.name = "cpu"}, 1);
    std::vector<float> rotation = rotation_table(model.config, 4);
    try {
        LayerPass pass(model, 1 << 24, rotation);
        FAIL("that fits");
    } catch (const Error& error) {
        std::string words = error.what();
        CAPTURE(words);
        CHECK(words.find("sequences of 16777216 tokens") != words.npos);
        size_t at = words.find("--context ");
        REQUIRE(at != words.npos);
        int fits = std::stoi(words.substr(at + 10));
        CHECK(fits > 0);
        CHECK(fits < 1 << 24);
    }
}

TEST_SUITE_END();
