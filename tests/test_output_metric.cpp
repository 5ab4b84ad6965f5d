// The metric of the layer's output: what a random direction of the output sends back to keys and
// values, against central differences in double precision.
#include "calibrate/output_metric.h"

#include "calibrate/learned_layer.h"
#include "matrices.h"
#include "reference_layer.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

struct Probed {
    Scratch scratch;
    Model model;
    explicit Probed(const TinyModel& tiny) {
        write_tiny_model(tiny, scratch.path("."));
        model = Model::open(scratch.path("."), {.name = "cpu"}, 2);
        model.backend->exact = true;
    }
};

// Σ gᵀg and Σ ‖g‖² kᵀk of one head, g by central differences of ⟨u, Y⟩.
struct Expected {
    const ReferenceLayer& layer;
    const std::vector<Vec>& x;
    const Floats& u;

    double inner(const std::vector<Vec>& y) const {
        double sum = 0;
        for (size_t t = 0; t < y.size(); t++)
            for (size_t i = 0; i < y[t].size(); i++)
                sum += double(u[t * y[t].size() + i]) * y[t][i];
        return sum;
    }

    ProbedSide side(size_t g, bool values) const {
        size_t d = size_t(layer.c.d);
        ProbedSide sum{Matrix(d, d), Matrix(d, d)};
        for (size_t token = 0; token < x.size(); token++) {
            Vec gradient(d), row(d);
            for (size_t i = 0; i < d; i++) {
                auto nudged = [&](double h) {
                    auto nudge = [&](size_t t, Vec& k, Vec& v) {
                        double& one = (values ? v : k)[g * d + i];
                        if (t == token) row[i] = one, one += h;
                    };
                    return inner(layer.run(x, nudge));
                };
                gradient[i] = (nudged(1e-5) - nudged(-1e-5)) / 2e-5;
            }
            double square = 0;
            for (double a : gradient) square += a * a;
            for (size_t i = 0; i < d; i++)
                for (size_t j = 0; j < d; j++) {
                    sum.energy(i, j) += gradient[i] * gradient[j];
                    sum.moment(i, j) += square * row[i] * row[j];
                }
        }
        return sum;
    }
};

}  // namespace

TEST_CASE("what a direction of the output asks of keys and values is its central difference") {
    const struct {
        const char* why;
        int T, H, G;
    } cases[] = {
        {"two query heads a kv head", 6, 4, 2}, {"one kv head", 5, 3, 1}, {"a head each", 7, 2, 2}};
    for (auto& one : cases) {
        std::string why = one.why;
        CAPTURE(why);
        Probed probed({.why = one.why,
                       .L = 1,
                       .D = 16,
                       .F = 24,
                       .V = 32,
                       .H = one.H,
                       .G = one.G,
                       .deviation = 0.4});
        const Config& c = probed.model.config;
        size_t T = size_t(one.T), D = size_t(c.D);
        int pos = 21;
        Floats x = normals(T * D, 5), u = normals(T * D, 6);
        std::vector<Vec> rows;
        for (size_t t = 0; t < T; t++)
            rows.emplace_back(x.begin() + ptrdiff_t(t * D), x.begin() + ptrdiff_t((t + 1) * D));

        std::vector<float> rotation = rotation_table(c, pos + one.T);
        LayerPass pass(probed.model, one.T, rotation);
        pass.begin(0, x.data(), {pos, one.T});
        pass.forward(LayerCuts(c, false));
        OutputMoments sums(c);
        pass.probe(u.data(), sums);
        for (bool rotated : {false, true}) {
            CAPTURE(rotated);
            ReferenceLayer layer{c, probed.model.weights.layer[0], rope_frequencies(c), rotated,
                                 pos};
            Expected expected{layer, rows, u};
            for (size_t g = 0; g < size_t(c.G); g++) {
                ProbedSide k = expected.side(g, false), v = expected.side(g, true);
                const ProbedSide& got = (rotated ? sums.k_rotated : sums.k)[g];
                CHECK(nmse(got.energy.data, k.energy.data) <= 1e-9);  // f32, differences here
                CHECK(nmse(got.moment.data, k.moment.data) <= 1e-9);
                CHECK(nmse(sums.v[g].energy.data, v.energy.data) <= 1e-9);
                CHECK(nmse(sums.v[g].moment.data, v.moment.data) <= 1e-9);
            }
        }
    }
}

TEST_CASE("the output metric is symmetric, positive and tame, the same for any number of threads") {
    for (bool repeated : {false, true}) {  // one token over and over: most gradients vanish
        CAPTURE(repeated);
        Floats first;
        for (int threads : {1, 3}) {
            Probed probed({.why = "metric"});
            probed.model = Model::open(probed.scratch.path("."), {.name = "cpu"}, threads);
            Random random(4);
            Sequences learn, none;
            learn.T = none.T = 20;
            for (int s = 0; s < 6; s++) {
                learn.ids.emplace_back(20, Token(5));
                if (!repeated)
                    for (Token& id : learn.ids.back()) id = Token(random.below(64));
                learn.pos.push_back(7 * s);
            }
            std::vector<float> rotation = rotation_table(probed.model.config, 100);
            LayerPass pass(probed.model, 20, rotation);
            LayerInputs inputs(probed.model, learn, none, probed.scratch.path("."));
            Moments moments = collect(pass, inputs, 0);
            OutputMoments sums = probe_output(pass, inputs, 0, 1, [] {});
            Floats all;
            for (bool rotated : {false, true}) {
                CalibrationOptions options;
                LearnedLayer bases =
                    warm_start_layer(probed.model, moments, sums, 0, rotated, options);
                for (const BasisUnit& unit : bases.units) {
                    CHECK(distance(unit.metric.S, transpose(unit.metric.S)) <= 1e-13);
                    std::vector<double> spectrum = eigen_symmetric(unit.metric.S).values;
                    CHECK(spectrum.back() >= 0.999 * METRIC_FLOOR * spectrum.front());
                    Matrix ED = times(encode(unit.Q, unit.metric), decode(unit.Q, unit.metric));
                    CHECK(from_identity(ED) <= 1e-9);
                    Floats flat = to_floats(unit.Q);
                    all.insert(all.end(), flat.begin(), flat.end());
                }
            }
            if (threads == 1) first = all;
            CHECK(same_bits(all, first));
        }
    }
}

TEST_SUITE_END();
