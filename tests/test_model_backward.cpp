// The way back through the whole model, against central differences of the way there.
#include "calibrate/model_backward.h"

#include <algorithm>
#include <cmath>

#include "backends.h"
#include "calibrate/price_samples.h"
#include "calibrate/stiefel.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

struct Whole {
    Model& model;
    LayerPass& pass;
    std::vector<Token> ids;
    Step step;
    Buffer x, logits;

    Whole(LayerPass& over, std::vector<Token> tokens, int pos)
        : model(over.model), pass(over), ids(std::move(tokens)), step{pos, int(ids.size())} {
        x = Buffer(*model.backend, ids.size() * size_t(pass.c.D) * sizeof(float), "x");
        logits = Buffer(*model.backend, ids.size() * size_t(pass.c.V) * sizeof(float), "logits");
    }
    // (T, V) on the backend
    void forward(const std::vector<LayerCuts>& cuts) {
        size_t rows = ids.size() * size_t(pass.c.D);
        embed_sequence(model, x.f32(), ids);
        for (int l = 0; l < pass.c.L; l++) {
            pass.begin_on_backend(l, x.f32(), step);
            pass.forward(cuts[size_t(l)]);
            pass.ops_back->copy(x.f32(), pass.out, rows);
        }
        model.backend->rmsnorm(pass.out, x.f32(), model.norm, pass.c.norm_eps, step.T);
        model.backend->matmul(logits.f32(), pass.out, model.classifier, step.T, false);
    }
    Floats host() {
        Floats all(ids.size() * size_t(pass.c.V), NaN);
        model.backend->download(all.data(), logits.f32(), all.size() * sizeof(float));
        return all;
    }
};

double inner(const Floats& a, const Floats& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); i++) sum += double(a[i]) * double(b[i]);
    return sum;
}

// E = I + ε A, D = I.
Cut nudge(const Matrix& A, double epsilon) {
    Matrix E = identity(A.rows);
    add_scaled(E, epsilon, A);
    return {to_floats(E), to_floats(identity(A.rows)), {}, {RowFormat::whole(int(A.rows))}};
}

Matrix some_matrix(size_t d, uint64_t seed) {
    Random random(seed);
    Matrix A(d, d);
    for (double& a : A.data) a = random.normal();
    return A;
}

Floats download(Model& model, const float* from, size_t n) {
    Floats all(n, NaN);
    model.backend->download(all.data(), from, n * sizeof(float));
    return all;
}

}  // namespace

TEST_CASE("the gradient of every head's keys and values is the logits' central difference") {
    const struct {
        const char* why;
        bool rotated, tied, cut;
        int T, H, G;
    } cases[] = {{"keys before rotation", false, true, false, 7, 4, 2},
                 {"keys after rotation", true, false, false, 9, 4, 2},
                 {"behind cut keys and values", false, true, true, 9, 4, 2},
                 {"behind cut keys after rotation, one kv head", true, true, true, 7, 3, 1},
                 {"two blocks of queries", false, true, false, 131, 2, 1}};
    constexpr uint64_t SEED = 77;
    for (const Variant& variant : groups())
        for (auto& one : cases) {
            std::string why = one.why;
            CAPTURE(why);
            CAPTURE(variant.group);
            Scratch scratch;
            TinyModel tiny{.why = one.why, .L = 3, .D = 16, .F = 24, .V = 40};
            tiny.H = one.H, tiny.G = one.G, tiny.tied = one.tied, tiny.deviation = 0.3;
            write_tiny_model(tiny, scratch.path("."));
            Model model = open_model(scratch.path("."), variant);
            model.backend->exact = true;
            const Config& c = model.config;
            size_t d = size_t(c.d), T = size_t(one.T);
            Random random(3);
            std::vector<Token> ids;
            for (size_t t = 0; t < T; t++) ids.push_back(Token(random.below(40)));
            std::vector<float> rotation = rotation_table(c, 200);
            LayerPass pass(model, one.T, rotation);
            Whole whole(pass, ids, 11);

            std::vector<LayerCuts> cuts(3, LayerCuts(c, one.rotated));
            for (LayerCuts& layer : cuts) layer.dtype = DType::F32;
            for (size_t l = 0; l < 3; l++)
                for (size_t g = 0; g < size_t(c.G) && one.cut && l > 0; g++) {
                    cuts[l].sinks = 2;
                    for (Cut* cut : {&cuts[l].k[g], &cuts[l].v[g]}) {
                        Matrix Q = qr(some_matrix(d, 10 * l + g)).Q;
                        cut->encode = to_floats(Q), cut->decode = to_floats(transpose(Q));
                        cut->weight.assign(d, 1.0f);
                        cut->format = {RowFormat::whole(cut == &cuts[l].k[g] ? 5 : 3)};
                    }
                }
            whole.forward(cuts);
            pass.ops_back->score_direction(whole.logits.f32(), SEED, one.T, c.V);
            Floats u = whole.host();

            Doubles want, got;
            std::vector<Matrix> A;
            for (size_t i = 0; i < 2 * 3 * size_t(c.G); i++) A.push_back(some_matrix(d, 50 + i));
            auto index = [&](int l, int g, bool v) {
                return size_t((l * c.G + g) * 2 + v);
            };
            got.assign(A.size(), double(NaN));
            auto visit = [&](int l) {
                size_t each = T * d, all = size_t(c.G) * each;
                for (bool v : {false, true}) {
                    Floats k = download(model, v ? pass.v : one.rotated ? pass.k_rotated : pass.k,
                                        all);
                    Floats dk = download(model, v ? pass.dv : pass.dk, all);
                    for (int g = 0; g < c.G; g++) {
                        double sum = 0;
                        const Matrix& a = A[index(l, g, v)];
                        for (size_t t = size_t(g) * each; t < size_t(g + 1) * each; t += d)
                            for (size_t i = 0; i < d; i++)
                                for (size_t j = 0; j < d; j++)
                                    sum += double(k[t + i]) * a(i, j) * double(dk[t + j]);
                        got[index(l, g, v)] = sum;
                    }
                }
            };
            // Whatever is kept of layers: of none, of the last alone, of all.
            size_t layer = LayerKept().place(c, one.T, nullptr) * sizeof(float);
            for (size_t kept : {size_t(0), layer, 3 * layer}) {
                CAPTURE(kept);
                Doubles before = got;
                ModelBackward(pass, one.T, kept).run(ids, whole.step, cuts, SEED, visit);
                if (kept > 0) CHECK(got == before);
            }
            constexpr double EPSILON = 3e-3;
            for (int l = 0; l < 3; l++)
                for (int g = 0; g < c.G; g++)
                    for (bool v : {false, true}) {
                        if (one.cut && l > 0) {  // a cut head has no room for a nudge
                            got[index(l, g, v)] = 0;
                            want.push_back(0);
                            continue;
                        }
                        Cut& cut = (v ? cuts[size_t(l)].v : cuts[size_t(l)].k)[size_t(g)];
                        double ends[2];
                        for (int side : {0, 1}) {
                            cut = nudge(A[index(l, g, v)], side ? -EPSILON : EPSILON);
                            whole.forward(cuts);
                            ends[side] = inner(whole.host(), u);
                        }
                        cut = {};
                        want.push_back((ends[0] - ends[1]) / (2 * EPSILON));
                    }
            // f32 differences of size ε: rounding 1e-6 / ε of the logits, curvature ε².
            CHECK(nmse(got, want) <= 1e-5);
        }
}

TEST_CASE("what one query asks is asked from its own distance, and from none beyond") {
    for (const Variant& variant : groups())
        for (bool rotated : {false, true}) {
            CAPTURE(variant.group);
            CAPTURE(rotated);
            Scratch scratch;
            TinyModel tiny{.why = "distance", .L = 1, .D = 16, .F = 24, .V = 40};
            write_tiny_model(tiny, scratch.path("."));
            Model model = open_model(scratch.path("."), variant);
            model.backend->exact = true;
            const Config& c = model.config;
            constexpr int T = 140, ASKING = 133;  // the second block of queries
            size_t d = size_t(c.d), D = size_t(c.D), all = size_t(c.G) * T * d;
            std::vector<float> rotation = rotation_table(c, T);
            LayerPass pass(model, T, rotation);
            Floats x = normals(T * D, 5), asked(T * D, 0.0f);
            std::copy_n(normals(D, 6).data(), D, asked.data() + ASKING * D);
            Buffer dx(*model.backend, T * D * sizeof(float), "dx");
            const std::vector<int> distances = {1, 40, 134};
            pass.split_by_distance(distances);
            pass.begin(0, x.data(), {0, T});
            LayerCuts cuts(c, rotated);
            pass.forward(cuts);
            model.backend->upload(dx.data, asked.data(), asked.size() * sizeof(float));
            pass.back_to_input(cuts, dx.f32());
            for (bool values : {false, true}) {
                Floats whole = download(model, values ? pass.dv : pass.dk, all);
                for (size_t i = 0; i < distances.size(); i++) {
                    Floats got =
                        download(model, (values ? pass.dv_from : pass.dk_from)[i], all);
                    Floats want = whole;
                    for (size_t n = 0; n < all; n++)
                        if (ASKING - int(n / d % T) < distances[i]) want[n] = 0;
                    CHECK(got == want);  // but for the sign of zero
                }
            }
        }
}

TEST_CASE("keys before rotation and what is asked of them do not know where their sequence begins") {
    constexpr int T = 24, SINKS = 4;
    Scratch scratch;
    TinyModel tiny{.why = "positions", .L = 3, .D = 16, .F = 24, .V = 40};
    tiny.H = 4, tiny.G = 2, tiny.deviation = 0.3;
    write_tiny_model(tiny, scratch.path("."));
    Model model = open_model(scratch.path("."), groups()[0]);
    model.backend->exact = true;
    const Config& c = model.config;
    std::vector<float> rotation = rotation_table(c, c.context);
    LayerPass pass(model, T, rotation);
    pass.split_by_distance({4, 8});
    ModelBackward back(pass, T);
    Units units(c, false);
    Random random(3);
    std::vector<Token> ids;
    for (int t = 0; t < T; t++) ids.push_back(Token(random.below(40)));
    auto sampled = [&](int pos, bool rotated) {
        Sequences one;
        one.T = T, one.ids = {ids}, one.pos = {pos}, one.text = {0};
        return collect_samples(back, units, one, rotated, SINKS, 5, "", [] {});
    };
    REQUIRE(c.context >= 100);
    PriceSamples here = sampled(0, true), there = sampled(c.context - T, true);
    REQUIRE(here.tokens == size_t(T - SINKS));
    REQUIRE(here.ages == 2);
    for (size_t u = 0; u < units.count(); u++) {
        size_t n = here.tokens * units.width(u);
        CAPTURE(u);
        CHECK(nmse(there.k(u), Doubles(here.k(u), here.k(u) + n).data(), n) <= TOL_F32);
        // Through three layers there and back, of which each turns by angles rounded to 2⁻²⁴; an age's part
        // is a difference of sums, whose errors it has.
        Floats all = here.g_compressed(u);
        double energy = inner(all, all);
        for (size_t age = 0; age < 2; age++) {
            double error = 0;
            for (size_t i = 0; i < n; i++)
                error += std::pow(double(there.g_of_age(u, age)[i]) - double(here.g_of_age(u, age)[i]), 2);
            CHECK(error <= 6 * TOL_F32 * energy);
        }
    }

    // So every token's may be turned to a position of its own: those of the context, all over it.
    size_t d = size_t(c.d);
    REQUIRE(here.turns.size() == here.tokens * d);
    std::vector<int> drawn;
    for (size_t t = 0; t < here.tokens; t++)
        for (int pos = 0; pos < c.context; pos++)
            if (std::equal(rotation.begin() + ptrdiff_t(size_t(pos) * d),
                           rotation.begin() + ptrdiff_t(size_t(pos + 1) * d),
                           here.turns.begin() + ptrdiff_t(t * d)))
                drawn.push_back(pos);
    REQUIRE(drawn.size() == here.tokens);
    CHECK(*std::min_element(drawn.begin(), drawn.end()) < c.context / 4);
    CHECK(*std::max_element(drawn.begin(), drawn.end()) >= c.context * 3 / 4);

    // Equal tokens' keys of the first layer are one error before rotation, and several after it.
    PriceSamples before = sampled(0, false);
    size_t key = units.of(0, 0, false), n = here.tokens * units.width(key);
    CHECK_FALSE(std::equal(before.g_of_age(key, 1), before.g_of_age(key, 1) + n, here.g_of_age(key, 1)));
}

TEST_CASE("the direction of the score has the covariance of the model's own distribution") {
    constexpr int V = 70;
    Floats z = normals(V, 9);
    for (float& x : z) x *= 2;
    double sum = 0;
    Doubles p(V);
    for (int i = 0; i < V; i++) sum += p[size_t(i)] = std::exp(double(z[size_t(i)]));
    for (double& one : p) one /= sum;
    Doubles want(V * V), got;
    for (size_t i = 0; i < V; i++)
        for (size_t j = 0; j < V; j++) want[i * V + j] = (i == j ? p[i] : 0) - p[i] * p[j];
    double squared_norm = 0;
    for (double x : want) squared_norm += x * x;
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        const int N = variant.slow ? 400 : 4000;
        Lab lab(variant);
        Floats rows;
        for (int n = 0; n < N; n++) rows.insert(rows.end(), z.begin(), z.end());
        Buffer all(*lab.backend, rows.size() * sizeof(float), "rows");
        lab.backend->upload(all.data, rows.data(), rows.size() * sizeof(float));
        make_backward(*lab.backend)->score_direction(all.f32(), 5, N, V);
        lab.backend->download(rows.data(), all.data, rows.size() * sizeof(float));
        got.assign(V * V, 0);
        for (size_t n = 0; n < size_t(N); n++)
            for (size_t i = 0; i < V; i++)
                for (size_t j = 0; j < V; j++)
                    got[i * V + j] += double(rows[n * V + i]) * double(rows[n * V + j]) / N;
        // The mean of N products z_i z_j, each of variance below p_i p_j.
        CHECK(nmse(got, want) <= 2 / (N * squared_norm));
        double mean = 0;
        for (float x : rows) mean += double(x) / N;
        CHECK(std::abs(mean) <= 1e-5);  // Σ z = Σ ξ√p − Σ p Σ ξ√p = 0 in every row
    }
}

TEST_SUITE_END();
