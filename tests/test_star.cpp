// Ranks by learned thresholds: calibrate --method star.
#include "calibrate/star.h"

#include "backends.h"
#include "calibrate/calibrate.h"
#include "calibrate/model_descent.h"
#include "calibration_lab.h"
#include "forward/perplexity.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

struct Tried : CalibrationLab {
    explicit Tried(const TinyModel& tiny = {.why = "star", .L = 2, .D = 32, .d = 16})
        : CalibrationLab(tiny) {
        model.backend->exact = true;
        options.method = "star", options.steps = 8;
        options.measured_windows = 4, options.sinks = 4, options.recent = 0;
    }
};

Matrix some_moment(size_t d, uint64_t seed) {
    Random random(seed);
    Matrix A(d, d);
    for (double& a : A.data) a = random.normal();
    return times_transposed(A, A);
}

Star some_star(const Config& c, bool coded, bool joint = false) {
    Units units(c, joint);
    std::vector<Matrix> moment;
    for (size_t u = 0; u < units.count(); u++) moment.push_back(some_moment(units.width(u), 10 + u));
    return Star(units, std::move(moment), coded);
}

}  // namespace

TEST_CASE("the gradient of the divergence by every threshold is its central difference") {
    for (const Variant& variant : groups())
        for (bool rotated : {false, true}) {
            bool joint = rotated;
            CAPTURE(variant.group);
            CAPTURE(rotated);
            Scratch scratch;
            write_tiny_model({.why = "gates", .L = 2, .D = 16, .F = 24, .V = 40, .H = 4, .G = 2},
                             scratch.path("."));
            Model model = open_model(scratch.path("."), variant);
            model.backend->exact = true;
            const Config& c = model.config;
            Sequences text;
            text.T = 24;
            Random random(3);
            for (int t = 0; t < text.T; t++) {
                if (t == 0) text.ids.emplace_back(), text.pos.push_back(5);
                text.ids[0].push_back(Token(random.below(40)));
            }
            std::vector<float> rotation = rotation_table(c, 64);
            LayerPass pass(model, text.T, rotation);
            ModelBackward back(pass, text.T);
            Activations full = full_outputs(back, text, scratch.path("."), [] {});
            Star star = some_star(c, false, joint);
            // Some coordinate of each unit is in the middle of its gate's slope.
            for (size_t a = 0; a < star.alpha.size(); a++) {
                size_t u = star.units.of(int(a) / 3, int(a) % 3 % 2, a % 3 == 2);
                star.alpha[a] = star.x[u][a % 4 + 2] - 0.01;
            }
            auto cuts = [&] { return star.gated_cuts(c, rotated, 2, DType::F32); };
            std::vector<std::vector<LayerGradient>> gradient(size_t(c.L), {LayerGradient(c, joint)});
            std::vector<LayerCuts> now = cuts();
            back.run_divergence(text.ids[0], text.step(0), now, full.data, [&](int l) {
                pass.add_basis_gradient(now[size_t(l)], gradient[size_t(l)]);
            });
            std::vector<double> got(star.alpha.size()), want;
            for (size_t u = 0; u < star.unit.size(); u++) {
                Units::Unit at = star.units.at(u);
                LayerGradient& of = gradient[size_t(at.l)][0];
                star.add_gradient(got, u, (at.values ? of.stored_v : of.stored_k)[size_t(at.g)]);
            }
            // Σ_t KL(full ‖ gated)
            auto divergence = [&] {
                std::vector<LayerCuts> these = cuts();
                double sum = 0;
                size_t V = size_t(c.V), T = size_t(text.T), D = size_t(c.D);
                Buffer x(*model.backend, T * D * 4, "x"), z(*model.backend, T * V * 4, "z");
                Floats p(T * V), q(T * V);
                for (bool cut : {false, true}) {
                    LayerCuts none(c, rotated);
                    back.there(text.ids[0], text.step(0),
                               cut ? these : std::vector<LayerCuts>(size_t(c.L), none));
                    model.backend->rmsnorm(x.f32(), back.output(text.T), model.norm,
                                           c.norm_eps, text.T);
                    model.backend->matmul(z.f32(), x.f32(), model.classifier, text.T, false);
                    model.backend->download((cut ? q : p).data(), z.f32(), T * V * 4);
                }
                for (size_t row = 0; row < T; row++) {
                    double zp = 0, zq = 0;
                    for (size_t i = row * V; i < (row + 1) * V; i++)
                        zp += std::exp(double(p[i])), zq += std::exp(double(q[i]));
                    for (size_t i = row * V; i < (row + 1) * V; i++)
                        sum += std::exp(double(p[i])) / zp *
                               (double(p[i]) - std::log(zp) - double(q[i]) + std::log(zq));
                }
                return sum;
            };
            constexpr double EPSILON = 1e-4;  // times s: 5e-3 of a gate's range
            for (double& alpha : star.alpha) {
                double ends[2], before = alpha;
                for (int side : {0, 1})
                    alpha = before + (side ? -EPSILON : EPSILON), ends[side] = divergence();
                alpha = before;
                want.push_back((ends[0] - ends[1]) / (2 * EPSILON));
            }
            CHECK(nmse(got, want) <= 1e-4);
        }
}

TEST_CASE("planted dimensions are what thresholds keep, of keys and values") {
    for (int planted : {4, 8})
        for (bool rotated : {false, true}) {
            CAPTURE(planted);
            CAPTURE(rotated);
            Tried tried({.why = "planted", .L = 2, .D = 32, .d = 16, .planted = planted,
                         .planes = rotated});
            CalibrationOptions& o = tried.options;
            o.bits = "16", o.keep = planted / 16.0, o.keys = rotated ? "post" : "pre";
            o.joint_values = rotated;
            CalibrationResult result = tried.run();
            for (const Bases::Layer& layer : result.bases.layer)
                for (auto side : {&Bases::Layer::k, &Bases::Layer::v})
                    for (const HeadBasis& head : layer.*side)
                        CHECK(head.format[0] ==
                              RowFormat::whole(planted * int(head.width()) / 16));
            CHECK(result.measured.divergence.mean <= 1e-5);  // an f16 cache
        }
}

TEST_CASE("thresholds keep to their bytes, and what is written is what was measured") {
    for (const char* keys : {"pre", "post"})
        for (const char* bits : {"mixed", "16"})
            for (double keep : {0.07, 0.15, 0.4, 1.0}) {
                CAPTURE(keys);
                CAPTURE(bits);
                CAPTURE(keep);
                Tried tried;
                tried.options.keys = keys, tried.options.bits = bits, tried.options.keep = keep;
                tried.options.joint_values = keep < 0.3;
                CalibrationResult result = tried.run();
                CHECK(double(result.bytes_per_token) <= keep * double(result.full_bytes_per_token));
                CHECK(result.bytes_per_token > 0);
                CHECK(result.thresholds.size() == 6);
                // What is left is less than the dearest step.
                double left =
                    keep * double(result.full_bytes_per_token) - double(result.bytes_per_token);
                bool mixed = bits[0] == 'm';
                if (keep < (mixed ? 0.2 : 1)) CHECK(left < (mixed ? 5 : 8));
                if (keep == 1 && !mixed) CHECK(result.measured.divergence.mean <= 1e-4);
                write_bases(result, tried.model, tried.text, tried.partial);
                const Config& c = tried.model.config;
                Bases bases = Bases::open(tried.output(), c,
                                          tried.model.weights.fingerprint(c));
                CHECK(bases.hash(1) == result.bases.hash(1));
                CHECK(bases.bytes_per_token(DType::F16) == result.bytes_per_token);
                Transformer transformer(tried.model, 24);
                KvCache cut(*tried.model.backend, c, 24, DType::F16, &bases);
                KvCache whole(*tried.model.backend, c, 24, DType::F16);
                Runner tested{transformer, cut, true}, reference{transformer, whole, true};
                Measured again = measure(tested, &reference, tried.text.held_out[0].ids,
                                         {.name = Protocol::Chunks, .context = 24, .limit = 4}, {});
                CHECK(again.divergence.mean == result.measured.divergence.mean);
            }
}

TEST_CASE("a fifth of the codes have 4 bits, the others 3, each block rotated within itself") {
    for (auto [r, four] : {std::pair{8, 0}, {16, 0}, {24, 8}, {32, 8}, {56, 8}, {64, 16}, {128, 24}}) {
        RowFormat format = star_format(r, true);
        CHECK(format.kept() == r);
        CHECK(format.bytes(DType::F16) == size_t(3 * r + four) / 8 + 1);
    }
    CHECK(star_format(0, true).bytes(DType::F16) == 0);
    Config c;
    c.L = 1, c.G = 1, c.H = 1, c.d = 64;
    Star star = some_star(c, true);
    RowFormat format = star_format(40, true);  // 8 of 4 bits, 32 of 3
    PricedUnit plain = star.unit[0], turned = star.stored(0, format);
    Matrix between = transposed_times(plain.Q, turned.Q);  // what turns one into the other
    double outside = 0, inside = 0;
    auto block = [](size_t i) { return i < 8 ? 0 : i < 40 ? 1 : int(i); };
    for (size_t i = 0; i < 64; i++)
        for (size_t j = 0; j < 64; j++)
            (block(i) == block(j) ? inside : outside) += between(i, j) * between(i, j);
    CHECK(outside <= 1e-24);
    CHECK(std::abs(inside - 64) <= 1e-9);
    for (size_t i = 0; i < 40; i++)  // Hadamard: every coordinate of a block weighs the same
        for (size_t j = 0; j < 40; j++)
            if (block(i) == block(j))
                CHECK(std::abs(std::abs(between(i, j)) - std::sqrt(1.0 / (i < 8 ? 8 : 32))) <= 1e-9);
}

TEST_CASE("thresholds that were learned before an interruption are taken up again") {
    struct Interrupted {};
    Tried whole, killed;
    whole.options.keep = killed.options.keep = 0.15;
    CalibrationResult want = whole.run();
    CHECK_THROWS_AS(killed.run([](size_t, size_t, const std::string& phase) {
                        if (phase == "what it costs") throw Interrupted();
                    }),
                    Interrupted);
    killed.options.resume = true;
    CalibrationResult got = killed.run([](size_t, size_t, const std::string& phase) {
        if (phase == "eigenbases") FAIL("learned again");
    });
    CHECK(got.resumed == 1);
    CHECK(got.bases.hash(1) == want.bases.hash(1));
}

TEST_SUITE_END();
