// stief calibrate: bases, and a rank or bits for each coordinate, learnt from a text. The phases,
// in the order of calibrate():
//   --objective model   prices of the full cache → formats → groups of layers alone correct the
//                       prices → the better formats of both → measure     (model_objective.cpp)
//   --method star       eigenbases → thresholds → ranks → measure         (star_descent.cpp)
//   --objective layer   for every layer collect → warm start → profile; allocate → for every layer
//                       descend at its ranks → profile; allocate again → verify
// The caller writes the bases and the report.
#pragma once
#include <optional>

#include "calibrate/budget.h"
#include "calibrate/end_to_end.h"
#include "calibrate/partial.h"

namespace stief {

// All that the report shows.
struct CalibrationResult {
    CalibrationOptions options;
    std::vector<LearnedLayer> layer;  // (L) curves, spectra, errors at d/4 and d/2, w_l
    Ranks ranks;
    std::vector<double> error, error_warm;  // (L) √Δ_l at these ranks, held out; by the eigenbases
    size_t bytes_per_token = 0, full_bytes_per_token = 0;
    double predicted = 0;                   // objective model: divergence by prices, Σ over ages
    // objective model: the divergence on held-out text by the eigenbases, and by those that the descent has
    // turned, which are taken where that is less.
    struct Descent {
        double before, after;
        bool taken() const { return after < before; }
    };
    std::optional<Descent> descent;
    struct Phase {
        std::string name;
        double seconds;
        bool verifies;  // measures what has been learned
    };
    std::vector<Phase> time;
    Measured measured;  // held-out text through the cache, against the full one
    std::vector<TextDivergence> by_text;  // the same on each held-out text
    struct Point {      // the same bases at other sizes; objective layer: without a whole window
        double keep;
        size_t bytes_per_token;
        double perplexity, divergence;
        double predicted = 0;  // objective model
    };
    std::vector<Point> sizes;  // of the learned bases
    struct Compared {          // other ways to make a cache as small, on the same text
        std::string name;
        std::vector<Point> points;
    };
    std::vector<Compared> compared;
    // The keys or the values of neighbouring layers alone, nats; objective layer: of all of one, Δ_l.
    struct Foretold {
        size_t first, last;  // layers
        bool values;
        double predicted, measured;
    };
    std::vector<Foretold> foretold;
    std::vector<double> thresholds;         // (L, G + 1)  method star: α of each key head, of values
    double perplexity_full = 0;             // of the full cache on the same text
    size_t sequences = 0, held_out = 0;     // learnt from, measured on
    int resumed = 0;                        // layers, or phases, that an interrupted run had finished
    double seconds = 0;
    Bases bases;
};

// What the user watches: layer, phase, how much of all is done.
using CalibrationProgress =
    std::function<void(size_t done, size_t total, const std::string& phase)>;

// partial: the folder of the resumable state.
CalibrationResult calibrate(Model& model, const CalibrationText& text,
                            const CalibrationOptions& options, Partial& partial,
                            const CalibrationProgress& progress);
// Writes the bases to partial.output and removes the resumable state.
void write_bases(const CalibrationResult& result, const Model& model, const CalibrationText& text,
                 Partial& partial);

}  // namespace stief
