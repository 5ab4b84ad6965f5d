// What other ways to make a cache small cost on the same windows, for the report: EigenAttention
// with its own thresholds, and rotated uniform quantisation. Neither needs another pass to learn.
#pragma once
#include "calibrate/calibration_run.h"
#include "calibrate/units.h"

namespace stief {

// EigenAttention's space from second moments: one basis for a layer's keys, one a head for its
// values, no metric; spectra and eigenbases, no curves.
LearnedLayer eigen_attention(const Config& config, const std::vector<Matrix>& k,  // (G)  (d, d)
                             const std::vector<Matrix>& v, bool rotated, DType cache);

// The same from what the model's objective has collected: the units' own moments.
std::vector<LearnedLayer> eigen_layers(const CalibrationRun& run, const Units& units,
                                       const std::vector<PricedUnit>& unit);

// The layers' cuts that the cache makes with these bases, at each of its ages; first `sinks` exact.
std::vector<LayerCuts> cuts_of(const Bases& bases, const Config& config, int sinks, DType cache);

// Held-out text, run.compared_windows() of it, through the caches of these bases and through the full
// one, which goes through it once for all of them.
std::vector<Measured> measure_caches(CalibrationRun& run, const std::vector<Bases>& ways);
void fill_in(std::vector<CalibrationResult::Point>& points, const std::vector<Measured>& measured);

// Adds both to result.compared, as measure_ways measures them (objective model: measure_caches, with
// the whole window of the options; layer: without one): by thresholds at shares of the full cache
// from an eighth to a half, uniform at 8, 4, 3 and 2 bits (where heads are multiples of 8 wide).
using MeasureWays = std::function<std::vector<Measured>(const std::vector<Bases>&)>;
void compare(const CalibrationRun& run, const std::vector<LearnedLayer>& eigen,
             const MeasureWays& measure_ways, CalibrationResult& result);

}  // namespace stief
