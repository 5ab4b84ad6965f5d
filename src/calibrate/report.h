// The picture of a calibration: one self-contained HTML file with inline SVG, readable in light and dark.
// Error against rank for every layer; the allocated ranks as a heat map; KL divergence and perplexity
// against cache size, with the eigenbases and the full cache; the settings and the figures.
#pragma once
#include <string>

#include "calibrate/calibrate.h"

namespace stief {

std::string report_html(const CalibrationResult& result, const Config& config,
                        const CalibrationText& text);

}  // namespace stief
