// Calibration through both seams on every backend: bases that are as good as the CPU's.
#include "backends.h"
#include "calibrate/calibrate.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

TEST_SUITE_BEGIN("calibrate");

namespace {

CalibrationOptions by_layer() {
    CalibrationOptions options;
    options.objective = "layer", options.bits = "16", options.keep = 0.5, options.steps = 6;
    return options;
}
CalibrationOptions by_prices(const std::string& keys) {
    CalibrationOptions options;
    options.keys = keys, options.keep = 0.25;
    return options;
}

CalibrationResult learn(const std::string& folder, const BackendOptions& backend,
                        CalibrationOptions options) {
    Model model = Model::open(folder, backend, 2);
    model.backend->exact = true;
    CalibrationText text{{{"text", {}}}, {{"text", {}}}};
    Random random(3);
    for (int i = 0; i < 240; i++) text.learn[0].ids.push_back(Token(random.below(64)));
    for (int i = 0; i < 60; i++) text.held_out[0].ids.push_back(Token(random.below(64)));
    options.sequence = 20, options.tokens = 160, options.batch = 2;
    options.held_out = 2, options.measured_windows = 2;
    options.sinks = options.recent = 0;
    Scratch scratch;
    Partial partial(scratch.path("out"));
    return calibrate(model, text, options, partial,
                     [](size_t, size_t, const std::string&) {});
}

}  // namespace

TEST_CASE("every backend learns the bases that the CPU learns") {
    Scratch scratch;
    write_tiny_model({.why = "backends", .L = 2}, scratch.path("."));
    CalibrationResult want = learn(scratch.path("."), {.name = "cpu"}, by_layer());
    for (const Variant& variant : groups()) {
        CAPTURE(variant.group);
        if (variant.prepare) variant.prepare();
        CalibrationResult got = learn(scratch.path("."), variant.options, by_layer());
        CHECK(nmse(got.error, want.error) <= 1e-4);
        CHECK(std::abs(got.measured.divergence.mean / want.measured.divergence.mean - 1) <= 0.01);
        CHECK(std::abs(got.perplexity_full / want.perplexity_full - 1) <= 1e-5);
        for (size_t l = 0; l < 2; l++)
            for (size_t u = 0; u < want.layer[l].units.size(); u++) {
                const BasisUnit &a = got.layer[l].units[u], &b = want.layer[l].units[u];
                CHECK(nmse(a.spectrum, b.spectrum) <= TOL_F32);
                CHECK(nmse(a.Q.data, b.Q.data) <= 1e-4);
            }
    }
}

TEST_CASE("every backend prices coordinates alike, keys after rotation less their mean too") {
    Scratch scratch;
    write_tiny_model({.why = "backends", .L = 2}, scratch.path("."));
    for (const std::string keys : {"pre", "post"}) {
        CAPTURE(keys);
        CalibrationResult want = learn(scratch.path("."), {.name = "cpu"}, by_prices(keys));
        for (const Variant& variant : groups()) {
            CAPTURE(variant.group);
            if (variant.prepare) variant.prepare();
            CalibrationResult got = learn(scratch.path("."), variant.options, by_prices(keys));
            CHECK(std::abs(got.measured.divergence.mean / want.measured.divergence.mean - 1) <= 0.01);
            CHECK(std::abs(got.perplexity_full / want.perplexity_full - 1) <= 1e-5);
        }
    }
}

TEST_SUITE_END();
