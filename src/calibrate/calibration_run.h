// One calibration: what outlives its layers. The text as sequences, the pass, what is left to do.
#pragma once
#include <chrono>

#include "calibrate/calibrate.h"

namespace stief {

// Counts passes over a sequence: there alone is 1, there and back 2.
struct Ticker {
    const CalibrationProgress& progress;
    size_t done = 0, total = 0;
    std::string phase;
    // passes: 0 where nobody counts them
    void begin(const std::string& name, size_t passes) {
        done = 0, total = passes, phase = name;
        progress(done, total, phase);
    }
    void operator()(size_t passes) { progress(done += passes, total, phase); }
};

// Where the minutes go.
struct Clock {
    CalibrationResult& result;
    std::chrono::steady_clock::time_point last = std::chrono::steady_clock::now();

    void phase(const std::string& name, bool verifies = false) {  // of what went on since the last one
        auto now = std::chrono::steady_clock::now();
        result.time.push_back({name, std::chrono::duration<double>(now - last).count(), verifies});
        last = now;
    }
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
    // Windows that choices, sizes and methods are measured on: at most a quarter of what was
    // learned from, so that it costs less than learning did; one of each text at least.
    size_t compared_windows() const;
    size_t passes_of_curves() const;  // of one layer, as are the others
    size_t passes_of_the_warm_start() const;
    size_t passes_of_the_descent() const;
    // What the layers depend on: options, model, text.
    uint64_t key() const;
};

// Sequences through the cache must leave its whole window, or nothing is measured; of what a budget
// of perplexity is measured by, a quarter must be read compressed.
int64_t shortest_sequence(const CalibrationOptions& options);

constexpr size_t PASSES_OF_A_CURVE = 24;  // both sides of one head at every rank of its curve

// The rest of calibrate(): ranks for the budget and the bases at them, in budget.cpp; what they cost, in
// verify.cpp.
Ranks allocate(CalibrationRun& run, const CalibrationResult& result);
Bases bases_at(const CalibrationRun& run, const CalibrationResult& result, const Ranks& ranks);
// eigen: EigenAttention's bases, to compare with.
void verify(CalibrationRun& run, const std::vector<LearnedLayer>& eigen, CalibrationResult& result);
// Held-out text through the cache of these bases and through the full one.
Measured measure_cache(CalibrationRun& run, const Bases& bases);
// --objective model, in model_objective.cpp: fills in the result, bases included.
void calibrate_model(CalibrationRun& run, CalibrationResult& result, const Partial& partial);
// --method star, in star_descent.cpp: likewise.
void calibrate_star(CalibrationRun& run, CalibrationResult& result, const Partial& partial);

}  // namespace stief
