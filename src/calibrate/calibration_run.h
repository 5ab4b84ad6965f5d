// One calibration: what outlives its layers. The text as sequences, the pass, what is left to do.
#pragma once
#include "calibrate/calibrate.h"

namespace stief {

// Counts passes over a sequence: there alone is 1, there and back 2.
struct Ticker {
    const CalibrationProgress& progress;
    size_t done = 0, total = 0;
    std::string phase;
    void operator()(size_t passes) { progress(done += passes, total, phase); }
};

struct CalibrationRun {
    Model& model;
    const CalibrationText& text;
    const CalibrationOptions& options;
    Sequences learn, held_out;
    Sequences windows;  // the first of each held-out text, one after another
    std::vector<float> rotation;
    LayerPass pass;
    Ticker ticker;

    CalibrationRun(Model& owner, const CalibrationText& of, const CalibrationOptions& how,
                   const CalibrationProgress& progress);
    size_t passes_of_curves() const;  // of one layer, as are the others
    size_t passes_of_the_warm_start() const;
    size_t passes_of_the_descent() const;
    // What the layers depend on: options, model, text.
    uint64_t key() const;
};

// Sequences through the cache must leave its exact window, or nothing is measured; of what a budget
// of perplexity is measured by, a quarter must be read compressed.
int shortest_sequence(const CalibrationOptions& options);

constexpr size_t PASSES_OF_A_CURVE = 24;  // both sides of one head at every rank of its curve

// The rest of calibrate(), in verify.cpp.
Ranks allocate(CalibrationRun& run, const CalibrationResult& result);
void verify(CalibrationRun& run, CalibrationResult& result);
// Held-out text through the cache of these bases and through the full one.
Measured measure_cache(CalibrationRun& run, const Bases& bases);
// --objective model, in model_objective.cpp: fills in the result, bases included.
void calibrate_model(CalibrationRun& run, CalibrationResult& result, const std::string& folder);
Bases bases_at(const CalibrationRun& run, const CalibrationResult& result, const Ranks& ranks);

}  // namespace stief
