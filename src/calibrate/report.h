// The picture of a calibration: one self-contained HTML file with inline SVG, readable in light and dark.
// KL divergence and perplexity against cache size, with EigenAttention's thresholds, rotated uniform
// quantisation and the full cache; the divergence on each held-out text; allocated bits or ranks as a
// heat map; predicted against measured; where the minutes went; the settings and the figures.
#pragma once
#include <string>

#include "calibrate/calibrate.h"

namespace stief {

std::string report_html(const CalibrationResult& result, const Config& config,
                        const CalibrationText& text);

}  // namespace stief
