// What other ways to make a cache small cost on the same windows, for the report: EigenAttention
// with its own thresholds, and rotated uniform quantisation. Neither needs another pass to learn.
#pragma once
#include "calibrate/calibration_run.h"

namespace stief {

// EigenAttention's space from second moments: one basis for a layer's keys, one a head for its
// values, no metric; spectra and eigenbases, no curves.
LearnedLayer eigen_attention(const Config& config, const std::vector<Matrix>& k,  // (G)  (d, d)
                             const std::vector<Matrix>& v, bool rotated, DType cache);

// The layers' cuts that the cache makes with these bases (their first age), first `sinks` exact.
std::vector<LayerCuts> cuts_of(const Bases& bases, const Config& config, int sinks, DType cache);

// Adds both to result.compared: by thresholds at shares of the full cache from an eighth to a half,
// uniform at 8, 4, 3 and 2 bits (where heads are multiples of 8 wide).
void compare(const CalibrationRun& run, EndToEnd& windows, const std::vector<LearnedLayer>& eigen,
             int sinks, CalibrationResult& result);

}  // namespace stief
