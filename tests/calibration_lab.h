// A tiny model, random texts and short sequences: what a calibration in a test runs on.
#pragma once
#include "calibrate/calibrate.h"
#include "tiny_model.h"

namespace stief::testing {

struct CalibrationLab {
    Scratch scratch;
    Model model;
    CalibrationText text;
    CalibrationOptions options;
    Partial partial{scratch.path("out.bases")};

    // learn, held_out: tokens of each text.
    explicit CalibrationLab(const TinyModel& tiny, int threads = 2, int learn = 600,
                            int held_out = 120, const std::vector<std::string>& names = {"text"}) {
        write_tiny_model(tiny, scratch.path("."));
        model = Model::open(scratch.path("."), {.name = "cpu"}, threads);
        Random random(3);
        for (auto [side, count] : {std::pair{&text.learn, learn}, {&text.held_out, held_out}})
            for (const std::string& name : names) {
                std::vector<Token>& ids = side->emplace_back(NamedText{name, {}}).ids;
                for (int i = 0; i < count; i++) ids.push_back(Token(random.below(uint64_t(tiny.V))));
            }
        options.sequence = 24, options.tokens = 240, options.held_out = 3;
    }
    const std::string& output() const { return partial.output; }
    CalibrationResult run(const CalibrationProgress& progress = [](size_t, size_t,
                                                                   const std::string&) {}) {
        return calibrate(model, text, options, partial, progress);
    }
};

}  // namespace stief::testing
